# SPDX-License-Identifier: MIT
"""What anybody may send to a listening guest: it says so in one line, or waits and still answers."""

import json
import signal
import socket
import time

import pytest
from guests import END_S, MIB, Process
from pair import make_guest

from pysampler.guest import snapshot
from pysampler.migration.stream import End, Start, State, encode

WORDS = ("--memory", "16M", "--workload", "uniform:wps=5k")


@pytest.fixture
def waiting(tmp_path):
    guest = Process(tmp_path, "other", *WORDS, "--incoming", "tcp:127.0.0.1:0")
    yield guest
    guest.close()


def connect(guest):
    return socket.create_connection(("127.0.0.1", int(guest.ready["incoming"].split(":")[2])))


def word(flags, kind, n):
    return (flags | kind << 8 | n << 24).to_bytes(8, "little")


def start(**members):
    given = {"blocks": (("pc.ram", 16 * MIB),), "page_size": 4096, "vcpus": 1, "capabilities": ()}
    return encode(Start(**{**given, **members}))


OTHER_VERSION = bytearray(start())
OTHER_VERSION[16] += 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"\0" * 4096,
        b"\xff" * 4096,
        b"x",
        b"",
        bytes(OTHER_VERSION),
        word(128, 1, (1 << 40) - 1),  # a START without end
        start() + word(128, 3, (1 << 40) - 1),  # a STATE, likewise
        start() + word(128, 3, 1) + b"\1",
        start() + word(128, 4, 0),  # END before anything
        start() + word(128, 200, 0),  # a kind that there is not
        start() + word(2, 30, (1 << 40) - 1) + b"\6pc.ram",  # a page far beyond the block
        start() + start(),
        start(blocks=(("pc.ram", 1 << 60),)),
        start(blocks=tuple((f"b{i}", 4096) for i in range(5000))),
        start(vcpus=1 << 40),
        start(page_size=1),
    ],
    ids=range(17),
)
def test_garbage_is_one_line_and_exit_code_1(waiting, data):
    with connect(waiting) as peer:
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        code, said = waiting.ended()
    assert code == 1
    assert said.startswith("pysampler guest: load of migration failed: ")
    assert said.count("\n") == 1
    assert len(said) < 400
    assert said.isascii()


@pytest.mark.parametrize("how", ["quit", "SIGTERM"])
def test_a_peer_that_sends_a_byte_now_and_then_holds_nothing_up(waiting, how):
    with connect(waiting) as peer:
        for byte in start()[:5]:
            peer.sendall(bytes([byte]))
            began = time.monotonic()
            assert waiting.info()["status"] in {"setup", "active"}
            assert waiting.run_state() == "inmigrate"
            assert time.monotonic() - began < 1
            time.sleep(0.1)
        if how == "quit":
            waiting.ask("quit")
            assert waiting.ended() == (0, "")
        else:
            assert waiting.end() == (0, "")


def test_a_thousand_connections(waiting):
    """The first one is the source; nobody listens there for the others."""
    refused = 0
    peers = []
    try:
        for _ in range(1000):
            try:
                peers.append(connect(waiting))
            except OSError:  # noqa: PERF203 - each is one try
                refused += 1
        assert refused >= 900
        assert waiting.run_state() == "inmigrate"
        with open(f"/proc/{waiting.pid}/status") as file:
            resident = next(line for line in file if line.startswith("VmRSS"))
        assert int(resident.split()[1]) < 400 << 10
    finally:
        for peer in peers:
            peer.close()
    assert waiting.ended()[0] == 1


def test_a_source_waits_for_no_answer_that_is_garbage(tmp_path):
    """A destination that answers with garbage has not got the guest."""
    source = Process(tmp_path, "source", *WORDS)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{tmp_path}/link")
            listener.listen(1)
            source.set("return-path")
            source.ask("migrate", uri=f"unix:{tmp_path}/link")
            peer, _ = listener.accept()
            with peer:
                peer.sendall(word(128, 16, 1) + b"\7")
                peer.settimeout(END_S)
                while "ram" not in source.info() or source.info()["status"] == "active":
                    peer.recv(1 << 20)
                while source.info()["status"] not in {"failed", "completed"}:
                    peer.recv(1 << 20)
        assert source.info()["status"] == "failed"
        deadline = time.monotonic() + END_S
        while source.run_state() != "running":
            assert time.monotonic() < deadline
        assert source.writes_go_on()
    finally:
        source.close()


@pytest.mark.parametrize("returns", [False, True])
def test_a_source_that_was_cancelled_before_the_answer_keeps_its_guest(waiting, returns):
    """Without a return path it has completed, and the guest must run here."""
    guest = make_guest("uniform:wps=5k", pages=4096)
    state = State(running=True, guest=snapshot.save(guest))
    guest.close()
    with connect(waiting) as peer:
        waiting.wait_for("active")
        waiting.signal(signal.SIGSTOP)
        peer.sendall(start(capabilities=("return-path",) * returns) + encode(state) + encode(End()))
        peer.shutdown(socket.SHUT_RDWR)
        waiting.signal(signal.SIGCONT)
        if returns:
            code, said = waiting.ended()
            assert code == 1
            assert said == "pysampler guest: load of migration failed: Invalid argument\n"
        else:
            assert waiting.wait_for("completed") == {"status": "completed"}
            assert waiting.writes_go_on()


@pytest.mark.parametrize("mode", ["page-sampling", "dirty-bitmap", "dirty-ring"])
def test_a_guest_is_measured_while_it_migrates(tmp_path, mode):
    """By whichever mode: neither waits for the other, and the rate is that of the workload."""
    words = ("--memory", "64M", "--workload", "uniform:wps=2k", "--logging-cost", "0us")
    source = Process(tmp_path, "source", *words)
    other = Process(tmp_path, "other", *words, "--incoming", f"unix:{tmp_path}/link")
    try:
        source.ask("set-vcpu-dirty-limit", dirty_rate=100)
        source.set(max_bandwidth=MIB)
        source.ask("migrate", uri=f"unix:{tmp_path}/link")
        source.wait_for("active")
        arguments = {"calc-time": 1, "mode": mode}
        if mode == "page-sampling":
            arguments["sample-pages"] = 16384  # 1024 pages: 7.2 MiB +- 0.7, so 6 sigma to 3 MiB
        source.qmp.execute("calc-dirty-rate", arguments)
        deadline = time.monotonic() + 20
        while (reply := source.ask("query-dirty-rate"))["status"] != "measured":
            assert time.monotonic() < deadline, reply
            time.sleep(0.05)
        assert source.info()["status"] == "active"
        # 2000 writes a second into 16384 pages dirty 7 MiB.
        assert 3 <= reply["dirty-rate"] <= 12, json.dumps(reply)
        source.set(max_bandwidth=0)
        source.wait_for("completed")
        other.wait_for("completed")
        assert other.writes_go_on()
        source.ask("cancel-vcpu-dirty-limit")
        assert source.end() == (0, "")
    finally:
        source.close()
        other.close()
