"""Events: their times, their order, and where they stand among replies."""

import json
import threading
import time

import pytest
from qmp_fakes import TIMEOUT_S, Client

from pysampler.qmp.commands.definition import Command
from pysampler.qmp.commands.table import COMMANDS


def microseconds(event):
    return event["timestamp"]["seconds"] * 1_000_000 + event["timestamp"]["microseconds"]


@pytest.mark.parametrize("may_block", [False, True])
def test_a_commands_events_precede_its_reply_whatever_thread_sends_them(
    client, monkeypatch, may_block
):
    def run(monitor, _):
        monitor.emit("X_FIRST")
        thread = threading.Thread(target=monitor.emit, args=("X_SECOND", {"pass": 2}))
        thread.start()
        thread.join()
        monitor.emit("X_THIRD")
        return {}

    monkeypatch.setitem(COMMANDS, "x-emit", Command(run, may_block=may_block))
    before = time.time_ns() // 1000
    client.send(b'{"execute": "query-status", "id": 0} {"execute": "x-emit", "id": 1}')
    lines = [json.loads(client.line()) for _ in range(5)]
    assert [line.get("event", line.get("id")) for line in lines] == [
        *(0, "X_FIRST", "X_SECOND", "X_THIRD", 1)
    ]
    assert lines[2]["data"] == {"pass": 2}
    times = [before, *(microseconds(line) for line in lines[1:4]), time.time_ns() // 1000]
    assert times == sorted(times)


def test_events_of_many_threads_come_in_the_order_of_their_times(server, client, monkeypatch):
    n_threads, n_events = 8, 200
    done = threading.Semaphore(0)

    def run(monitor, _):
        def emit(index):
            for i in range(n_events):
                monitor.emit("X_EVENT", {"thread": index, "i": i})
            done.release()

        for index in range(n_threads):
            threading.Thread(target=emit, args=(index,)).start()
        return {}

    monkeypatch.setitem(COMMANDS, "x-emit", Command(run))
    with Client(server.address) as other:
        other.negotiate()
        client.send(b'{"execute": "x-emit"}')
        for _ in range(n_threads):
            assert done.acquire(timeout=TIMEOUT_S)
        client.send(b'{"execute": "query-status", "id": "end"}')
        lines = []
        while not lines or lines[-1].get("id") != "end":
            lines.append(json.loads(client.line()))
        events = [line for line in lines if "event" in line]
        assert len(events) == n_threads * n_events
        assert [json.loads(other.line()) for _ in events] == events
    times = [microseconds(event) for event in events]
    assert times == sorted(times)
    by_thread = {}
    for event in events:
        by_thread.setdefault(event["data"]["thread"], []).append(event["data"]["i"])
    assert all(numbers == sorted(numbers) for numbers in by_thread.values())
