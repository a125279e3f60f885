# SPDX-License-Identifier: MIT
"""A destination takes the messages of a stream in their order, and in no other."""

import contextlib
import socket

import pytest
from pair import End, make_guest

from pysampler.core import message_bytes
from pysampler.guest import snapshot
from pysampler.guest.run_state import RunState
from pysampler.migration import stream
from pysampler.migration.stream import IterationEnd, Start, State, encode

N_PAGES = 256
START = Start((("pc.ram", N_PAGES * 4096),), 4096, 1)
ITERATION = IterationEnd(1)
END = stream.End()
# A batch of one record: the zero page 0 of pc.ram, which is named.
ZERO_PAGE = (3 | (8 + 7 + 1) << 8).to_bytes(8, "little") + b"\6pc.ram\0"


@pytest.fixture
def destination(tmp_path):
    end = End(make_guest(pages=N_PAGES, incoming=True))
    end.guest.cont()
    end.migration.incoming(f"unix:{tmp_path}/in")
    with contextlib.closing(end), socket.socket(socket.AF_UNIX) as peer:
        peer.connect(f"{tmp_path}/in")
        yield end, peer


@pytest.fixture
def state():
    guest = make_guest("uniform:wps=1k", pages=N_PAGES)
    yield State(True, snapshot.save(guest))
    guest.close()


def sent(peer, messages):
    for message in messages:
        peer.sendall(message if isinstance(message, bytes) else encode(message))
    peer.shutdown(socket.SHUT_WR)


def test_in_order_it_runs(destination, state):
    end, peer = destination
    sent(peer, [START, ZERO_PAGE, ITERATION, state, END])
    assert end.wait_until_ended().status == "completed"
    assert end.guest.state is RunState.RUNNING
    assert end.events[-2:] == [("RESUME",), ("MIGRATION", "completed")]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ((), "Invalid argument"),
        (("start",), "Invalid argument"),
        (("start", "iteration", "state"), "Invalid argument"),
        (("iteration",), "it does not begin with its blocks"),
        (("start", "start"), "message start is out of order"),
        (("start", "end"), "message end is out of order"),
        (("start", "state", "state"), "message state is out of order"),
        (("start", "state", "iteration"), "message iterationend is out of order"),
        (("start", "state", "page", "end"), "message end is out of order"),
        (("start", "unknown"), "migration stream: a message of unknown kind 9"),
    ],
)
def test_out_of_order_it_fails_and_the_guest_waits(destination, state, names, reason):
    end, peer = destination
    messages = {
        "start": START,
        "iteration": ITERATION,
        "state": state,
        "end": END,
        "page": ZERO_PAGE,
        "unknown": message_bytes(9, b""),
    }
    with contextlib.suppress(ConnectionError):  # it has hung up
        sent(peer, [messages[name] for name in names])
    info = end.wait_until_ended()
    assert info.status == "failed"
    assert info.error_desc == f"load of migration failed: {reason}"
    assert end.guest.state is RunState.INMIGRATE
