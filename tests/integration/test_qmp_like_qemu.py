"""The same bytes to a real QEMU and to our server; the replies are compared.

Any QEMU from 7.2 on will do: what is compared here is what has not changed since. (What
has, such as calc-dirty-rate's messages, is pinned in tests/qmp.)
"""

import json
import random

import pytest
from qmp_fakes import Client, serving
from real_qemu import Qemu

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def qemu_address(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qemu")
    address = f"unix:{directory}/ours"
    with Qemu(directory, "-m", "64M", "-smp", "2", "-qmp", f"{address},server=on,wait=off"):
        yield address


OOB = '{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'


@pytest.fixture
def clients(qemu_address, tmp_path):
    """A client of the real QEMU and one of ours, before negotiation."""
    with (
        serving(f"unix:{tmp_path}/ours") as server,
        Client(qemu_address) as qemu,
        Client(server.address) as ours,
    ):
        yield qemu, ours


@pytest.fixture
def both(clients):
    return [client.negotiate(OOB) for client in clients]


def replies(client, data):
    """Return the replies to ``data``, up to that to a last command that does not exist."""
    client.send(data + b'\n\xff\n{"execute": "the-end", "id": "end"}')
    lines = []
    while not (line := client.line()).startswith('{"id": "end"'):
        lines.append(line)
    return lines


REQUESTS = [
    b"[]",
    b"{}",
    b'{"foo": 1, "id": 7}',
    b'{"execute": 1}',
    b'{"exec-oob": 1}',
    b'{"execute": "stop", "exec-oob": "stop"}',
    b'{"execute": "query-status", "arguments": []}',
    b'{"execute": "query-status", "arguments": {"x": 1}, "id": null}',
    b'{"execute": "nonsense", "id": [1.5, 0.1, 1e22, -0.0, "\\u00e9\\ud83d\\ude00\\u0001"]}',
    b'{"exec-oob": "query-dirty-rate"}',
    b'{"exec-oob": "nonsense"}',
    b'{"execute": "qmp_capabilities"}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": ["foo"]}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": [1]}}',
    b'{"execute": "qmp_capabilities", "arguments": {"enable": 1}}',
    b'{"execute": "calc-dirty-rate"}',
    b'{"execute": "calc-dirty-rate", "arguments": {"foo": 2, "calc-time": "a"}}',
    b'{"execute": "calc-dirty-rate", "arguments": {"calc-time": 1.0}}',
    b'{"execute": "calc-dirty-rate", "arguments": {"calc-time": 9223372036854775808}}',
    b'{"execute": "calc-dirty-rate", "arguments": {"calc-time": 1, "foo": 2}}',
    b'{"execute": "calc-dirty-rate", "arguments": {"calc-time": 1, "mode": 5}}',
    b'{"execute": "calc-dirty-rate", "arguments": {"calc-time": 1, "mode": "bad"}}',
    b'{"execute": "calc-dirty-rate", "arguments": {"calc-time": 1, "sample-pages": 1}}',
    b'{"execute": "human-monitor-command"}',
    b'{"execute": "human-monitor-command", "arguments": {"command-line": "", "cpu-index": 2}}',
    *(
        b'{"execute": "human-monitor-command", "arguments": {"command-line": "%b"}}' % line
        for line in [
            b"", b"nonsense", b"info nonsense", b"info dirty_rate", b"info dirty_rate foo",
            b"help info dirty_rate", b"help info status", b"info status x", b"help calc_dirty_rate", b"help nonsense",
            b"calc_dirty_rate", b"calc_dirty_rate 0", b"calc_dirty_rate x", b"calc_dirty_rate 1 x",
            b"calc_dirty_rate 1 512 3", b"calc_dirty_rate -x 1", b"calc_dirty_rate -r -b 1",
            b"calc_dirty_rate 99999999999999999999", b"calc_dirty_rate 1 5",
        ]
    ),
]  # fmt: skip


@pytest.mark.parametrize("request_bytes", REQUESTS)
def test_our_reply_is_qemus_byte_for_byte(both, request_bytes):
    qemu, ours = both
    assert replies(qemu, request_bytes) == replies(ours, request_bytes)


def test_stop_and_cont_send_the_same_lines(both):
    qemu, ours = both

    def lines(client, name):
        sent = [client.ask(f'{{"execute": "{name}", "id": 1}}')]
        while "return" not in sent[-1]:
            sent.append(client.line())
        return [{**json.loads(line), "timestamp": 0} if "event" in line else line for line in sent]

    lines(qemu, "cont")  # the QEMU has been started stopped
    for name in ("stop", "stop", "cont", "cont", "stop"):
        assert lines(qemu, name) == lines(ours, name)
        status = (
            b'{"execute": "human-monitor-command", "arguments": {"command-line": "info status"}}'
        )
        assert replies(qemu, status) == replies(ours, status)


# `0e` is where QEMU's lexer parts from JSON; ours does not.
PIECES = [
    b"{", b"}", b"[", b"]", b":", b",", b'"a"', b'"b"', b"'c'", b"1", b"-1", b"1.5", b"true",
    b"null", b"fals", b" ", b"\n", b'"\\u00e9"', b'"\\ud83d\\ude00"', b'"\\ud83d"', b'"\\q"',
    b"\t", b"\x00", b"\xff", b'"', b"'", b"\\", b"-", b".", b"+", b"\xc3\xa9", b'"\xc3"', b'"id":',
    b'{"id":', b"@", b"\x7f", b'"\\u1"', b'"\\u1x345"', b'"\\uD800\\u"', b"18446744073709551616",
]  # fmt: skip


def test_broken_input_gets_the_same_answers(clients):
    # Not out of band: there QEMU 7.2 ends by an assertion when more than 8 errors pile up.
    qemu, ours = (client.negotiate() for client in clients)
    rng = random.Random(20231)
    for _ in range(1500):
        data = b"".join(rng.choices(PIECES, k=rng.randint(1, 9)))
        assert replies(qemu, data) == replies(ours, data), data
