"""`pysampler guest` whose vCPU a tracker holds in a write."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from pysampler.memory.source import find_blocks
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads

pytestmark = pytest.mark.usefixtures("needs_dirty_ring")


def children(pid):
    return [
        int(child)
        for of_thread in Path(f"/proc/{pid}/task").glob("*/children")
        for child in of_thread.read_text().split()
    ]


@contextmanager
def guest(socket_path, before=()):
    """Run a guest; `before` starts it in another way. Its `guest_pid` is the one of our /proc."""
    words = ["--memory=8M", "--workload=sweep:wps=100k", f"--qmp=unix:{socket_path}"]
    with subprocess.Popen(
        [*before, sys.executable, "-m", "pysampler", "guest", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            process.ready = json.loads(process.stdout.readline())
            (process.guest_pid,) = children(process.pid) if before else [process.pid]
            yield process
        finally:
            for pid in children(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.kill()


@contextmanager
def held(pid):
    """Hold the vCPU of a guest at a full ring."""
    vcpus = vcpu_threads(pid)
    observer = DirtyRing(find_blocks(pid), vcpus, pid=pid, capacity=1, harvest_full=False)
    try:
        observer.warm_up()
        while not observer.n_waiting:
            time.sleep(0.001)
        yield
    finally:
        observer.close()


def connect(path, *commands):
    """Send commands to a guest; read the answers to none but the first."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    requests = [{"execute": "qmp_capabilities"}, *commands]
    client.sendall("".join(json.dumps(request) for request in requests).encode("ascii"))
    received = b""
    while received.count(b"\n") < 2:  # greeting and capabilities
        received += client.recv(1)
    return client


def many(command):
    return [{"execute": command}] * 5000


CALC = {
    "execute": "calc-dirty-rate",
    "arguments": {"calc-time": 60, "sample-pages": 16384},
}
BUSY = {
    "nothing": [],
    "stop": [{"execute": "stop"}],
    "two stops and cont": [{"execute": "stop"}, {"execute": "cont"}, {"execute": "stop"}],
    "calc-dirty-rate": [CALC],
    "calc-dirty-rate, bitmap": [
        {"execute": "calc-dirty-rate", "arguments": {"calc-time": 60, "mode": "dirty-bitmap"}}
    ],
    "a client that does not read": many("query-commands"),
    "all of it": [CALC, *many("query-commands")[:3000], {"execute": "stop"}],
}


@pytest.mark.parametrize("busy", BUSY)
def test_a_signal_ends_it(tmp_path, busy):
    path = tmp_path / "guest.sock"
    with guest(path) as process, held(process.pid):
        client = connect(path, *BUSY[busy])
        process.terminate()
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
        client.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGHUP], [signal.SIGTERM] * 2, [signal.SIGINT, signal.SIGTERM]],
)
def test_any_ending_signals_end_it(tmp_path, signals):
    path = tmp_path / "guest.sock"
    with guest(path) as process, held(process.pid):
        client = connect(path, {"execute": "stop"})
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        assert process.wait(60) == 0
        client.close()


def test_quit_ends_it(tmp_path):
    path = tmp_path / "guest.sock"
    with guest(path) as process, held(process.pid):
        client = connect(path, {"execute": "quit"})
        assert process.wait(60) == 0
        client.close()


TRACKER = """
import sys, time
from pysampler.memory.source import find_blocks
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
pid = int(sys.argv[1])
observer = DirtyRing(find_blocks(pid), vcpu_threads(pid), pid=pid, capacity=1, harvest_full=False)
observer.warm_up()
while not observer.n_waiting:
    time.sleep(0.001)
print("tracking", flush=True)
time.sleep(600)
"""


namespaces = pytest.param(
    ["unshare", "-pf"],
    marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root may make pid namespaces"),
    id="another pid namespace's /proc",
)


@pytest.mark.parametrize("before", [pytest.param([], id=""), namespaces])
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP])
def test_it_lets_itself_go_where_tracker_and_cleanup_process_cannot(
    tmp_path, signal_number, before
):
    with guest(tmp_path / "guest.sock", before) as process:
        tracker = subprocess.Popen(
            [sys.executable, "-c", TRACKER, str(process.guest_pid)], stdout=subprocess.PIPE
        )
        assert tracker.stdout.readline() == b"tracking\n"
        (cleanup,) = children(tracker.pid)
        os.kill(tracker.pid, signal.SIGSTOP)
        os.kill(cleanup, signal_number)
        if signal_number is signal.SIGKILL:
            tracker.kill()
        client = connect(tmp_path / "guest.sock", {"execute": "stop"})
        # Answered when all vCPUs stand, which a held one does not.
        received = b""
        while b"return" not in received:
            assert select.select([client], [], [], 60)[0]
            received += client.recv(65536)
        client.close()
        if signal_number is signal.SIGSTOP:
            os.kill(cleanup, signal.SIGCONT)
        tracker.kill()
        tracker.communicate()
