"""Clients made for QEMU, unchanged, against our server."""

import asyncio
import shutil
import subprocess
import sys

import pytest
from qemu.qmp import ExecuteError, QMPClient
from qmp_fakes import TIMEOUT_S

NEGOTIATE = '{"execute": "qmp_capabilities"}\n'


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, TIMEOUT_S))


def test_the_qemu_qmp_library_talks_to_it(server, measure):
    async def talk():
        qmp = QMPClient("test")
        await qmp.connect(server.address.removeprefix("unix:"))
        try:
            assert qmp.greeting is not None
            assert (await qmp.execute("query-status"))["status"] == "running"
            with pytest.raises(ExecuteError, match="The command nonsense has not been found"):
                await qmp.execute("nonsense")
            with qmp.listener(("STOP", "RESUME")) as events:
                await qmp.execute("stop")
                assert (await events.get())["event"] == "STOP"
                await qmp.execute("cont")
                assert (await events.get())["event"] == "RESUME"
            await qmp.execute("calc-dirty-rate", {"calc-time": 1})
            measure.finish.set()
            reply = {"status": "measuring"}
            while reply["status"] == "measuring":
                reply = await qmp.execute("query-dirty-rate")
            assert reply["dirty-rate"] == 55
        finally:
            await qmp.disconnect()

    run(talk())


def test_the_qemu_qmp_library_sees_the_end(server, guest):
    async def talk():
        qmp = QMPClient("test")
        await qmp.connect(server.address.removeprefix("unix:"))
        with qmp.listener("SHUTDOWN") as events:
            assert await qmp.execute("quit") == {}
            assert (await events.get())["data"] == {"guest": False, "reason": "host-qmp-quit"}
        assert guest.shutdown_requested.is_set()
        await asyncio.to_thread(server.close)
        with pytest.raises(EOFError):  # the library's word for a server that has gone
            await qmp.disconnect()

    run(talk())


def qmp_shell(server, *options, commands):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "qemu.qmp.qmp_shell",
            *options,
            server.address.removeprefix("unix:"),
        ],
        input="".join(f"{command}\n" for command in commands),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_qmp_shell_talks_to_it(server, measure):
    measure.finish.set()
    output = qmp_shell(
        server,
        commands=[
            "query-status",
            "calc-dirty-rate calc-time=1 sample-pages=128",
            "query-dirty-rate calc-time-unit=millisecond",
            "calc-dirty-rate calc-time=0",
        ],
    )
    assert "Connected to QEMU 10.0.2" in output
    assert '"status": "running"' in output.replace("'", '"')
    assert "Calculation time is out of range" in output
    assert measure.asked[0]["sample_pages"] == 128


def test_qmp_shell_speaks_to_the_human_monitor(server):
    output = qmp_shell(server, "--hmp", commands=["info dirty_rate"])
    assert "Dirty rate: (not ready)" in output


def test_socat_talks_to_it(server):
    if shutil.which("socat") is None:
        pytest.skip("no socat here")
    done = subprocess.run(
        ["socat", "-t", str(TIMEOUT_S), "-", server.address.replace("unix:", "UNIX-CONNECT:")],
        input=NEGOTIATE + '{"execute": "query-status"}\n{"execute": "query-dirty-rate"}\n',
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    greeting, *replies = done.stdout.splitlines()
    assert greeting.startswith('{"QMP": ')
    assert [reply[:11] for reply in replies] == ['{"return": '] * 3
