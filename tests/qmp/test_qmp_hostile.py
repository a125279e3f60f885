"""Whatever a client does, the others are served and the guest goes on."""

import contextlib
import json
import os
import random
import socket
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qemu_arguments import ARGUMENTS, ROWS
from qmp_fakes import TIMEOUT_S, Client, is_admitted

from pysampler.qmp.commands.definition import Command
from pysampler.qmp.commands.table import COMMANDS
from pysampler.qmp.server import MAX_CLIENTS

STATUS = b'{"execute": "query-status"}'
RUNNING = '{"return": {"status": "running", "running": true}}'


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_served(address):
    with Client(address) as client:
        return client.negotiate().ask(STATUS) == RUNNING


def descs(client, last):
    """Read replies until one that ends in ``last``; return what the others said."""
    errors = []
    while not (line := client.line()).endswith(last):
        assert line
        errors.append(line.partition('"desc": ')[2])
    return errors


@pytest.mark.parametrize("pattern", [b"x", b'"', b"[1,", b"\\", b"\x80"])
def test_a_line_of_100_mb_costs_an_error_and_no_memory(server, client, pattern):
    chunk = (b'["' + pattern * (1 << 20))[: 1 << 20]
    before = resident_bytes()

    def write():
        for _ in range(100):
            client.send(chunk)
        client.send(b'\n\xff\n{"execute": "query-status", "id": "end"}')

    writer = threading.Thread(target=write)
    writer.start()
    errors = descs(client, '"id": "end"}')
    writer.join()
    assert 1 <= len(errors) <= 100
    assert resident_bytes() - before < 32 << 20
    assert is_served(server.address)


def test_deep_nesting_costs_an_error_a_thousand_brackets(server, client):
    client.send(b"[" * 20_000 + b'\xff\n{"execute": "query-status", "id": "end"}')
    errors = descs(client, '"id": "end"}')
    assert errors[0] == '"JSON nesting depth limit exceeded"}}'
    assert len(errors) == 20_000 // 1025 + 1
    assert is_served(server.address)


def test_invalid_utf_8_is_refused_and_the_connection_goes_on(client):
    assert "invalid UTF-8 sequence in string" in client.ask(b'{"execute": "\xed\xa0\x80"}')
    assert "stray" in client.ask(b'{"execute": "\xff"}')
    assert "expecting value" in client.line()
    assert client.ask(STATUS) == RUNNING


def test_thousands_of_requests_in_one_go_are_answered_in_turn(client):
    n = 20_000
    requests = b"".join(b'{"execute":"query-status","id":%d}' % i for i in range(n))
    writer = threading.Thread(target=client.send, args=(requests,))
    writer.start()
    for i in range(n):
        assert client.line().endswith(f'"id": {i}}}')
    writer.join()


def test_a_value_may_come_byte_by_byte(client):
    for i in range(len(STATUS)):
        client.send(STATUS[i : i + 1])
    assert client.line() == RUNNING


def test_clients_that_vanish_are_forgotten(server):
    reset = b"\1\0\0\0\0\0\0\0"  # struct linger: close sends RST and forgets what is unsent
    for parting in (
        b"",
        STATUS,
        b'{"execute": "qmp_capabilities"}' + STATUS * 500,
        b'{"execute": ',
    ):
        for vanish in (True, False):
            client = Client(server.address)
            if vanish:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            client.send(parting)
            client.close()
    assert is_served(server.address)


def test_a_client_that_closes_its_half_gets_its_answers(server):
    with Client(server.address) as client:
        client.negotiate().send(STATUS * 3 + b'{"execute": ')
        client.socket.shutdown(socket.SHUT_WR)
        assert [client.line() for _ in range(4)] == [RUNNING] * 3 + [""]


def test_half_a_request_hinders_nobody(server, client):
    client.send(b'{"execute": ')
    assert is_served(server.address)
    assert client.ask(b'"query-status"}') == RUNNING


def test_a_client_that_never_reads_is_not_read(server):
    with Client(server.address) as deaf:
        deaf.negotiate()
        deaf.socket.settimeout(0.2)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 100 << 20:
                sent += deaf.socket.send(STATUS * 1000)
        assert sent < 8 << 20
        assert is_served(server.address)


def test_a_client_that_never_reads_is_dropped_when_events_pile_up(server, client, monkeypatch):
    monkeypatch.setattr("pysampler.qmp.session.MAX_UNREAD_BYTES", 32 << 10)
    monkeypatch.setattr("pysampler.qmp.server.MAX_CLIENTS", 2)
    with Client(server.address) as deaf:
        deaf.negotiate()
        assert not is_admitted(server.address)
        for _ in range(20_000):
            client.ask(b'{"execute": "stop"}')
            client.line()
            client.ask(b'{"execute": "cont"}')
            client.line()
            if deaf.is_dropped():
                break
        assert deaf.is_dropped(TIMEOUT_S)
        assert is_admitted(server.address, TIMEOUT_S)  # the other one is forgotten
        assert client.ask(STATUS) == RUNNING


def test_a_server_with_a_deaf_client_still_closes(server, client):
    with Client(server.address) as deaf:
        deaf.negotiate()
        deaf.socket.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                deaf.socket.send(STATUS * 1000)
        server.close()
        assert client.line() == ""


def test_many_clients_are_served_and_too_many_are_turned_away(server):
    clients = [Client(server.address).negotiate() for _ in range(MAX_CLIENTS)]
    try:
        assert [client.ask(STATUS) for client in clients] == [RUNNING] * MAX_CLIENTS
        with Client(server.address) as late, contextlib.suppress(ConnectionResetError):
            assert late.line() == ""
        assert clients[-1].ask(STATUS) == RUNNING
    finally:
        for client in clients:
            client.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.binary(max_size=200) | st.sampled_from([STATUS, b'{"execute":', b"\xff"]), max_size=8
    )
)
def test_no_bytes_stop_the_server(server, pieces):
    with Client(server.address) as client:
        client.negotiate()
        for piece in pieces:
            client.send(piece)
        client.send(b'\n\xff\n{"execute": "query-status", "id": "end"}')
        descs(client, '"id": "end"}')


def test_while_a_command_blocks_the_others_are_served(server, client, guest, monkeypatch):
    entered, release = threading.Event(), threading.Event()

    def stop():
        entered.set()
        assert release.wait(TIMEOUT_S)
        return True

    monkeypatch.setattr(guest, "stop", stop)
    client.send(b'{"execute": "stop"}')
    assert entered.wait(TIMEOUT_S)
    try:
        assert is_served(server.address)
    finally:
        release.set()
    assert "STOP" in client.line()


PIECES = [
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"'", b"\\", b"null", b"-1", b"1e999", b"\xff", b"\x00",
    b"\xc3", b'"id":', b'"exec-oob":', b"18446744073709551616", b"[[[[" * 40, b'"a":' * 30, b"9" * 400,
]  # fmt: skip


def mutated(rng, line):
    for _ in range(rng.randint(0, 4)):
        start, end = sorted(rng.choices(range(len(line) + 1), k=2))
        middle = rng.choice([b"", line[start:end] * 2, rng.choice(PIECES), rng.randbytes(2)])
        line = line[:start] + middle + line[end:]
    return line


def test_no_mutated_request_stops_the_server(server, monkeypatch):
    def nothing(_, __):
        return {}

    for name, arguments in ARGUMENTS.items():  # those of migration are only declared
        if name not in COMMANDS:
            monkeypatch.setitem(COMMANDS, name, Command(nothing, arguments, may_block=True))
    rng = random.Random(12)
    requests = [json.dumps({key: row[key] for key in ("execute", "arguments")}) for row in ROWS]
    for _ in range(40):
        with Client(server.address) as client:
            client.negotiate('{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}')
            lines = [mutated(rng, rng.choice(requests).encode()) for _ in range(100)]
            client.send(b"\n".join(lines) + b'\n\xff\n{"execute": "query-status", "id": "end"}')
            assert not [
                errors for errors in descs(client, '"id": "end"}') if "internal error" in errors
            ]
