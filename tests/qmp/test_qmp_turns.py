"""What is answered when: in turn, while a command blocks, and out of band."""

import contextlib
import json
import os
import subprocess
import sys
import threading

import pytest
from qmp_fakes import TIMEOUT_S, Client, is_admitted

from pysampler.qmp.commands.definition import Command
from pysampler.qmp.commands.table import COMMANDS
from pysampler.qmp.schema import Member, String
from pysampler.qmp.session import MAX_WAITING
from pysampler.qmp.wire.messages import QmpError


class Block:
    """What the command x-block waits for."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.release = threading.Semaphore(0)

    def __call__(self, monitor, _):
        self.entered.release()
        assert self.release.acquire(timeout=TIMEOUT_S)
        monitor.emit("X_BLOCKED")
        return {}


@pytest.fixture
def block(monkeypatch):
    block = Block()
    monkeypatch.setitem(COMMANDS, "x-block", Command(block, may_block=True))
    yield block
    for _ in range(100):
        block.release.release()


@pytest.fixture
def out_of_band(monkeypatch):
    def pause(monitor, _):
        monitor.emit("X_PAUSED")
        return {}

    def recover(_, __):
        raise QmpError("cannot")

    monkeypatch.setitem(COMMANDS, "x-pause", Command(pause, allow_oob=True))
    arguments = (Member("uri", String()),)
    monkeypatch.setitem(COMMANDS, "x-recover", Command(recover, arguments, allow_oob=True))


def request(name, request_id, key="execute", **more):
    return json.dumps({key: name, "id": request_id, **more}).encode()


def replied(client):
    """Return the next reply's id, or the next event's name."""
    message = json.loads(client.line())
    return message["event"] if "event" in message else message["id"]


def test_finished_replies_are_not_withheld_while_a_later_command_blocks(client, block):
    client.send(b"".join(request("query-status", i) for i in range(3)))
    client.send(request("x-block", 3) + request("query-status", 4))
    assert [replied(client) for _ in range(3)] == [0, 1, 2]
    assert block.entered.acquire(timeout=TIMEOUT_S)
    block.release.release()
    assert [replied(client) for _ in range(3)] == ["X_BLOCKED", 3, 4]


def test_finished_replies_in_the_same_packet_are_not_withheld_either(client, block):
    client.send(request("query-status", 0) + b"nonsense " + request("x-block", 1))
    assert replied(client) == 0
    assert "invalid keyword" in client.line()
    block.release.release()
    assert [replied(client) for _ in range(2)] == ["X_BLOCKED", 1]


@pytest.mark.parametrize("enable", [[], ["oob"]])
def test_replies_come_in_the_order_of_the_requests(server, block, enable):
    names = ["query-status", "x-block", "x-block", "nonsense", "query-version", "x-block"]
    with Client(server.address) as client:
        client.negotiate(
            json.dumps({"execute": "qmp_capabilities", "arguments": {"enable": enable}})
        )
        client.send(b"".join(request(name, i) for i, name in enumerate(names)))
        for _ in range(3):
            block.release.release()
        came = [replied(client) for _ in range(len(names) + 3)]
    assert [reply for reply in came if reply != "X_BLOCKED"] == list(range(len(names)))
    assert [came[came.index(i) - 1] for i in (1, 2, 5)] == ["X_BLOCKED"] * 3


@pytest.mark.usefixtures("out_of_band")
def test_what_is_asked_for_out_of_band_is_done_while_another_command_blocks(client, block):
    client.send(request("x-block", "block") + request("query-status", "in band"))
    client.send(request("x-pause", 1, "exec-oob"))
    client.send(request("x-recover", 2, "exec-oob"))
    client.send(request("x-recover", 3, "exec-oob", arguments={"uri": "x"}))
    client.send(request("query-status", 4, "exec-oob"))
    client.send(request("nonsense", 5, "exec-oob"))
    client.send(request(1, 6, "exec-oob"))
    assert replied(client) == "X_PAUSED"
    assert client.line() == '{"return": {}, "id": 1}'
    assert [json.loads(client.line())["error"]["desc"] for _ in range(5)] == [
        "Parameter 'uri' is missing",
        "cannot",
        "The command query-status does not support OOB",
        "The command nonsense has not been found",
        "QMP input member 'exec-oob' must be a string",
    ]
    block.release.release()
    assert [replied(client) for _ in range(3)] == ["X_BLOCKED", "block", "in band"]


@pytest.mark.usefixtures("out_of_band")
def test_a_command_that_may_run_out_of_band_runs_in_band_as_well(client, block):
    client.send(request("x-block", 0) + request("x-pause", 1) + request("x-pause", 2, "exec-oob"))
    assert [replied(client) for _ in range(2)] == ["X_PAUSED", 2]
    block.release.release()
    assert [replied(client) for _ in range(4)] == ["X_BLOCKED", 0, "X_PAUSED", 1]


@pytest.mark.usefixtures("out_of_band")
def test_without_the_capability_nothing_runs_out_of_band(server, block):
    with Client(server.address) as client:
        client.negotiate()
        client.send(request("x-block", 0) + request("x-pause", 1, "exec-oob"))
        assert block.entered.acquire(timeout=TIMEOUT_S)
        block.release.release()
        assert [replied(client) for _ in range(2)] == ["X_BLOCKED", 0]
        assert "'exec-oob' is unexpected" in client.line()


@pytest.mark.usefixtures("out_of_band")
def test_behind_eight_that_wait_nothing_runs_out_of_band(client, block):
    client.send(request("x-block", "block"))
    client.send(b"".join(request("query-status", i) for i in range(MAX_WAITING - 1)))
    client.send(request("x-pause", "seven wait", "exec-oob"))
    assert [replied(client) for _ in range(2)] == ["X_PAUSED", "seven wait"]
    client.send(request("query-status", MAX_WAITING - 1))
    client.send(request("x-pause", "eight wait", "exec-oob"))
    client.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(TIMEOUT_S)
    block.release.release()
    expected = ["X_BLOCKED", "block", *range(MAX_WAITING), "X_PAUSED", "eight wait"]
    assert [replied(client) for _ in expected] == expected


def test_no_command_both_blocks_and_runs_out_of_band():
    assert not [
        name for name, command in COMMANDS.items() if command.may_block and command.allow_oob
    ]


def test_a_client_that_waits_for_a_blocked_command_is_not_read_on(client, block):
    client.send(request("x-block", 0))
    client.socket.settimeout(0.2)
    sent = 0
    large = request("query-status", "x" * 40_000)
    with contextlib.suppress(TimeoutError):
        while sent < 100 << 20:
            sent += client.socket.send(large)
    assert sent < 4 << 20
    client.socket.settimeout(TIMEOUT_S)
    block.release.release()
    assert [replied(client) for _ in range(2)] == ["X_BLOCKED", 0]


def test_a_client_that_closes_its_half_gets_what_blocks_and_what_waits(client, block):
    client.send(request("x-block", 0) + request("query-status", 1) + request("x-block", 2))
    client.socket.shutdown(1)
    for _ in range(2):
        block.release.release()
    assert [replied(client) for _ in range(5)] == ["X_BLOCKED", 0, 1, "X_BLOCKED", 2]
    assert client.line() == ""


def test_quit_is_heard_from_another_client_while_a_command_blocks(server, client, guest, block):
    client.send(request("x-block", 0))
    assert block.entered.acquire(timeout=TIMEOUT_S)
    with Client(server.address) as other:
        other.negotiate()
        other.send(request("quit", 1))
        assert [replied(other) for _ in range(2)] == ["SHUTDOWN", 1]
    assert guest.shutdown_requested.is_set()


def test_a_server_that_closes_answers_what_blocks_and_no_more(server, client, block):
    client.send(request("x-block", 0) + request("query-status", 1))
    assert block.entered.acquire(timeout=TIMEOUT_S)
    closing = threading.Thread(target=server.close)
    closing.start()
    block.release.release()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()
    lines = [client.line() for _ in range(3)]
    assert "X_BLOCKED" in lines[0]
    assert lines[1:] in (
        ['{"return": {}, "id": 0}', ""],  # or the release came first
        ['{"return": {}, "id": 0}', '{"return": {"status": "running", "running": true}, "id": 1}'],
    )


def test_a_client_that_is_dropped_while_its_requests_wait_is_forgotten(
    server, client, block, monkeypatch
):
    def emit(monitor, _):
        monitor.emit("X_LARGE", {"text": "x" * 100_000})
        return {}

    monkeypatch.setitem(COMMANDS, "x-emit", Command(emit))
    monkeypatch.setattr("pysampler.qmp.server.MAX_CLIENTS", 2)
    client.send(request("x-block", 0) + request("query-status", 1) * 1000)
    assert block.entered.acquire(timeout=TIMEOUT_S)
    with Client(server.address) as other:
        other.negotiate()
        while not client.is_dropped():
            other.send(request("x-emit", 2))
            assert [replied(other) for _ in range(2)] == ["X_LARGE", 2]
        assert not is_admitted(server.address)
        block.release.release()
        assert is_admitted(server.address, TIMEOUT_S)


@pytest.mark.parametrize("n_waiting", [0, 1, MAX_WAITING, 1000])
def test_a_server_does_not_wait_for_a_command_that_never_ends(server, client, block, n_waiting):
    client.send(request("x-block", 0) + request("query-status", 1) * n_waiting)
    assert block.entered.acquire(timeout=TIMEOUT_S)
    server.close()
    assert client.line() == ""


def test_a_process_ends_while_a_command_blocks(tmp_path):
    program = """
import threading
from qmp_fakes import Client, FakeGuest, serving

class Stuck(FakeGuest):
    def stop(self):
        entered.set()
        threading.Event().wait()

entered = threading.Event()
with serving("unix:qmp.sock", Stuck()) as server, Client(server.address) as client:
    client.negotiate().send(b'{"execute": "stop"}')
    assert entered.wait(20)
print("closed")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    assert done.stdout == "closed\n"
