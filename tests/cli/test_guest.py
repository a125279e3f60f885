"""`pysampler guest` as users run it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from unittest.mock import Mock

import numpy as np
import pytest

import pysampler
import pysampler.cli
import pysampler.cli.guest
from pysampler.memory.source import find_blocks

GUEST = [sys.executable, "-m", "pysampler", "guest"]


@contextmanager
def guest(*arguments):
    """A guest that is ready; yields its process, whose `ready` is the line it printed."""
    with subprocess.Popen(
        [*GUEST, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            process.ready = json.loads(process.stdout.readline())
            yield process
        finally:
            process.kill()


def test_it_says_where_everything_is():
    with guest("--memory=3M", "--block=vga=132K", "--vcpus=2", "--truth") as process:
        ready = process.ready
        assert ready["pid"] == process.pid
        assert [(b["idstr"], b["length"]) for b in ready["blocks"]] == [
            ("pc.ram", 3 << 20),
            ("vga", 132 << 10),
        ]
        for block in ready["blocks"]:
            name = os.readlink(f"/proc/{process.pid}/fd/{block['fd']}")
            assert name == f"/memfd:memory-backend-memfd:{block['idstr']} (deleted)"
            with open(f"/proc/{process.pid}/maps") as maps:
                assert any(line.startswith(f"{block['address']:x}-") for line in maps)
        assert os.stat(f"/proc/{process.pid}/fd/{ready['truth']['fd']}").st_size == 8 * (768 + 33)


def test_its_blocks_are_found_by_pid():
    with guest("--memory=3M", "--block=vga=132K") as process:
        found = {(block.idstr, block.used_length) for block in find_blocks(process.pid)}
    assert found == {("pc.ram", 3 << 20), ("vga", 132 << 10)}


def test_sampling_it_finds_its_zero_pages_and_fills_no_hole():
    # 16384 x 64 / 1024 = 1024 samples, 60 % of them zero: within 8 standard deviations of 15.7.
    with guest("--memory=64M", "--zero=60%", "--seed=7") as process:
        fd = process.ready["blocks"][0]["fd"]
        before = os.stat(f"/proc/{process.pid}/fd/{fd}").st_blocks
        vector = pysampler.sample(find_blocks(process.pid), calc_time="50ms", sample_pages=16384)
        assert os.stat(f"/proc/{process.pid}/fd/{fd}").st_blocks == before
    assert vector.n_sampled_pages == 1024
    assert abs(vector.n_zero_pages - 614) < 126
    assert vector.n_dirty_pages[-1] == 0


class Qmp:
    """A plain client."""

    def __init__(self, address):
        kind, _, where = address.partition(":")
        self._socket = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        host, _, port = where.rpartition(":")
        self._socket.connect(where if kind == "unix" else (host, int(port)))
        self._file = self._socket.makefile("rw")
        assert "QMP" in self.message()
        assert self.execute("qmp_capabilities") == {}

    def message(self):
        return json.loads(self._file.readline())

    def execute(self, command, **arguments):
        request = {
            "execute": command,
            "arguments": {k.replace("_", "-"): v for k, v in arguments.items()},
        }
        self._file.write(json.dumps(request))
        self._file.flush()
        while "event" in (reply := self.message()):
            pass
        return reply["return"]

    def close(self):
        self._file.close()
        self._socket.close()


@pytest.fixture
def ends():
    """Descriptors of clients, closed at the end."""
    clients = []

    def connect(process):
        clients.append(Qmp(process.ready["qmp"]))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def test_qmp_quit_ends_it_cleanly(tmp_path, ends):
    with guest("--memory=1M", f"--qmp=unix:{tmp_path}/guest.sock") as process:
        assert ends(process).execute("quit") == {}
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


def test_clients_are_told_of_a_signal_and_the_socket_is_removed(tmp_path, ends):
    with guest("--memory=1M", f"--qmp=unix:{tmp_path}/guest.sock") as process:
        client = ends(process)
        process.terminate()
        event = client.message()
        assert (event["event"], event["data"]["reason"]) == ("SHUTDOWN", "host-signal")
        assert process.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_signal_in_the_middle_of_a_long_measurement_ends_it_at_once(tmp_path, ends):
    with guest("--memory=1M", f"--qmp=unix:{tmp_path}/guest.sock") as process:
        ends(process).execute("calc-dirty-rate", calc_time=60, mode="dirty-bitmap")
        process.terminate()
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize("mode", ["page-sampling", "dirty-bitmap", "dirty-ring"])
def test_qmp_measures_it_in_each_mode(tmp_path, ends, mode):
    arguments = ["--memory=8M", "--truth", "--workload=sweep:ws=1M,wps=max", "--vcpus=2"]
    with guest(*arguments, f"--qmp=unix:{tmp_path}/guest.sock") as process:
        client = ends(process)
        own = {"sample_pages": 16384} if mode == "page-sampling" else {}
        client.execute(
            "calc-dirty-rate", calc_time=200, calc_time_unit="millisecond", mode=mode, **own
        )
        while (vector := client.execute("query-dirty-rate"))["status"] == "measuring":
            time.sleep(0.01)
        assert vector["mode"] == mode
        # A megabyte of eight is written over and over; of 128 samples of 2047 pages at most
        # 48 are expected to lie in it, once in 10^12.
        if mode == "page-sampling":
            assert 0 < vector["n-dirty-pages"][-1] <= 48
        else:
            assert vector["n-dirty-pages"][-1] == 256
            assert vector["n-total-pages"] == vector["n-sampled-pages"] == 2048
        assert client.execute("x-count-dirty-since", monotonic_ns=0)["pages"] == 256
        assert [vcpu["workload"] for vcpu in client.execute("x-query-workload")] == [
            "sweep:ws=1M,wps=max"
        ] * 2


def test_a_stopped_guest_counts_no_further(ends):
    with guest("--memory=1M", "--workload=uniform", "--qmp=tcp:127.0.0.1:0") as process:
        client = ends(process)
        client.execute("stop")
        before = client.execute("x-query-workload")[0]["writes"]
        assert client.execute("query-status") == {"status": "paused", "running": False}
        assert client.execute("x-query-workload")[0]["writes"] == before
        client.execute("cont")
        while client.execute("x-query-workload")[0]["writes"] == before:
            time.sleep(0.001)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_cleanly(tmp_path, number):
    arguments = ["--memory=1M", "--workload=uniform:wps=max", f"--qmp=unix:{tmp_path}/guest.sock"]
    with guest(*arguments) as process:
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


def main_of_guest(monkeypatch, allocate, *arguments):
    """Run the verb in this process with another way to fill RAM."""
    monkeypatch.setattr("pysampler.cli.guest.allocate", allocate)
    return pysampler.cli.main(["guest", "--memory=1M", *arguments])


def test_an_address_that_is_taken_is_refused_before_ram_is_filled(tmp_path, monkeypatch, capsys):
    with guest("--memory=1M", f"--qmp=unix:{tmp_path}/guest.sock") as process:
        address = process.ready["qmp"]
        fill = Mock()
        assert main_of_guest(monkeypatch, fill, f"--qmp={address}") == 1
        assert "a running process serves it" in capsys.readouterr().err
        fill.assert_not_called()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_while_ram_is_filled_leaves_no_socket(tmp_path, monkeypatch, capsys, number):
    def fill(*_, **__):
        assert (tmp_path / "guest.sock").exists()
        # A second one, which changes nothing, comes before the first has been looked at.
        ending = {number, signal.SIGTERM}
        signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        for each in ending:
            signal.raise_signal(each)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        assert main_of_guest(monkeypatch, fill, f"--qmp=unix:{tmp_path}/guest.sock") == 130
    finally:
        for ending, handler in handlers.items():
            signal.signal(ending, handler)
    assert capsys.readouterr() == ("", "pysampler guest: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_its_counters_count_on_while_it_runs():
    with guest("--memory=1M", "--workload=1=uniform", "--vcpus=2") as process:
        path = f"/proc/{process.pid}/fd/{process.ready['counters']['fd']}"
        counts = []
        while len(counts) < 3:
            slots = np.fromfile(path, dtype=np.uint64).reshape(-1, 8)
            assert slots[0, 0] == 0
            if not counts or slots[1, 0] > counts[-1]:
                counts.append(slots[1, 0])
            time.sleep(0.001)


def test_a_schedule_of_phases_is_run(tmp_path):
    schedule = tmp_path / "phases.json"
    schedule.write_text('{"phases": [{"for": "50ms", "workload": "idle"}, {"workload": "sweep"}]}')
    with guest("--memory=1M", f"--workload-file={schedule}") as process:
        path = f"/proc/{process.pid}/fd/{process.ready['counters']['fd']}"
        while np.fromfile(path, dtype=np.uint64)[0] == 0:
            time.sleep(0.001)


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ("kv:keys=1M", "1000000 keys of up to 1000 bytes do not fit"),
        ("burst:on=1s,off=1s,of=kv:keys=1M", "1000000 keys"),
        ("kv:ws=516K", "2 keys of up to 1000 bytes do not fit into a working set of 516 KiB"),
    ],
)
def test_a_store_that_does_not_fit_is_refused_before_any_memory_is_filled(
    monkeypatch, capsys, workload, message
):
    monkeypatch.setattr(pysampler.cli.guest, "allocate", Mock(side_effect=AssertionError))
    assert pysampler.cli.main(["guest", "--memory=64M", f"--workload={workload}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--memory=1000T"], 1, "the guest can grow to"),
        (["--memory=5000"], 2, "pc.ram: 5000 bytes are no whole number of pages"),
        (["--memory=x"], 2, "--memory: 'x' is not a size"),
        (["--vcpus=0"], 2, "--vcpus: 0 is not from 1 to 255"),
        (["--vcpus=256"], 2, "--vcpus: 256"),
        (["--seed=-1"], 2, "--seed: -1 is not from 0"),
        (["--zero=101%"], 2, "--zero: 101% is more than all"),
        (["--logging-cost=1.3"], 2, "--logging-cost: '1.3' is not a time from 0us to 1ms"),
        (["--logging-cost=1001us"], 2, "is not a time from 0us to 1ms"),
        (["--logging-cost=-1us"], 2, "is not a time from 0us to 1ms"),
        (["--dirty-ring-size=4k"], 2, "--dirty-ring-size must be a whole number (got '4k')"),
        (["--dirty-ring-size=512"], 2, "512 is neither 0, for no rings, nor a power of two from"),
        (["--dirty-ring-size=4097"], 2, "--dirty-ring-size: 4097 is neither 0"),
        (["--dirty-ring-size=131072"], 2, "a power of two from 1024 to 65536"),
        (["--block=vga"], 2, "--block: 'vga' is not NAME=SIZE"),
        (["--block=a/../ b=1M"], 2, "is not NAME=SIZE"),
        (["--block=pc.ram=1M"], 2, "pc.ram: two blocks of this name"),
        (["--workload=nonsense"], 2, "no such workload"),
        (["--workload=uniform:ws=2G"], 2, "ws is larger than pc.ram"),
        (["--workload=idle", "--workload-file=x"], 2, "give one of them"),
        (["--workload-file=/nowhere"], 1, "/nowhere: No such file"),
        (["--memory=1M", "--qmp=tcp:0.0.0.0:4444"], 2, "loopback"),
        (["--memory=1M", "--qmp=unix:/nowhere/guest.sock"], 1, "/nowhere/guest.sock"),
    ],
)
def test_wrong_usage_gets_one_line_and_an_exit_code(arguments, code, message):
    result = subprocess.run(
        [*GUEST, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
