"""QEMU's own client and hostile ones, against the guest itself."""

import asyncio
import contextlib
import json
import subprocess
import sys

import pytest
from qemu.qmp import QMPClient
from qmp_fakes import Client

from pysampler import Measurement

TIMEOUT_S = 60
WORKLOAD = '{"execute": "x-query-workload"}'


@contextlib.contextmanager
def guest(directory, *arguments):
    """A guest with a QMP socket; must end by itself, cleanly and without a word."""
    with subprocess.Popen(
        [sys.executable, "-m", "pysampler", "guest", f"--qmp=unix:{directory}/s", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield json.loads(process.stdout.readline())["qmp"]
            with Client(f"unix:{directory}/s") as client:
                client.negotiate().send(b'{"execute": "quit"}')
                assert process.wait(TIMEOUT_S) == 0
            assert process.stderr.read() == ""
            assert list(directory.iterdir()) == []
        finally:
            process.kill()


@pytest.mark.parametrize("mode", ["page-sampling", "dirty-bitmap", "dirty-ring"])
def test_qemus_own_client_measures_it(tmp_path, mode):
    async def talk(path):
        qmp = QMPClient("test")
        await qmp.connect(path)
        arguments = {"calc-time": 150, "calc-time-unit": "millisecond", "mode": mode}
        await qmp.execute("calc-dirty-rate", arguments)
        reply = {"status": "measuring"}
        while reply["status"] == "measuring":
            await asyncio.sleep(0.02)
            reply = await qmp.execute("query-dirty-rate", {"calc-time-unit": "millisecond"})
        await qmp.disconnect()
        return reply

    with guest(tmp_path, "--memory=64M", "--vcpus=2", "--workload=sweep:wps=100k") as address:
        reply = asyncio.run(asyncio.wait_for(talk(address.removeprefix("unix:")), TIMEOUT_S))
    vector = Measurement.from_dict(reply)
    assert vector.dirty_rate > 0
    assert vector.periods[-1] >= 150
    assert vector.mode.value == mode
    assert len(vector.vcpu_dirty_rate) == (2 if mode == "dirty-ring" else 0)


def writes(client):
    return [vcpu["writes"] for vcpu in json.loads(client.ask(WORKLOAD))["return"]]


def wait_for_writes(client, before):
    """Wait until each vCPU has written; return the writes so far."""
    for _ in range(200_000):  # some ten seconds; they take some milliseconds
        now = writes(client)
        if all(a < b for a, b in zip(before, now, strict=True)):
            return now
    raise AssertionError(f"a vCPU has stopped: {before}, {now}")


def test_hostile_clients_stop_neither_the_guest_nor_its_workload(tmp_path):
    attacks = [
        b"[" * 50_000,
        b'"' + b"x" * (10 << 20),
        b"}" * 20_000,
        b"\xff\xfe\x00" * 1000,
        b'{"execute": "query-status"}' * 5000,
        b'{"execute": "calc-dirty-rate", "arguments": {"calc-time": {}}}',
        b'{"execute": "stop", "id": ' + b"[" * 1000,
    ]
    with (
        guest(tmp_path, "--memory=16M", "--vcpus=2", "--workload=uniform:wps=50k") as address,
        Client(address) as client,
    ):
        before = writes(client.negotiate())
        for attack in attacks:
            with Client(address) as hostile:  # reads nothing, says this, and is gone
                hostile.negotiate().socket.settimeout(0.5)
                with contextlib.suppress(TimeoutError):  # what does not read is not read
                    hostile.send(attack)
            before = wait_for_writes(client, before)


def test_stop_stops_the_writes_and_cont_lets_them_go_on(tmp_path):
    with (
        guest(tmp_path, "--memory=16M", "--workload=uniform:wps=50k") as address,
        Client(address) as client,
    ):
        client.negotiate()
        assert '"event": "STOP"' in client.ask('{"execute": "stop"}')
        client.line()
        stopped = writes(client)
        assert writes(client) == stopped
        assert '"event": "RESUME"' in client.ask('{"execute": "cont"}')
        client.line()
        wait_for_writes(client, stopped)
