"""Out-of-band requests to a real QEMU 10 and to our server, while a command of each blocks."""

import os

import pytest
from qmp_fakes import Client, serving
from real_qemu import PROGRAM_10, Qemu

from pysampler.qmp.commands.definition import Command
from pysampler.qmp.commands.table import COMMANDS
from pysampler.qmp.schema import Integer, Member, String
from pysampler.qmp.wire.messages import QmpError

pytestmark = pytest.mark.integration

ENABLE = '{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'

REQUESTS = [
    '{"execute": "query-memory-size-summary", "id": 1}',
    '{"exec-oob": "migrate-pause", "id": 2}',
    '{"exec-oob": "query-status", "id": 3}',
    '{"exec-oob": "nonsense", "id": 4}',
    '{"exec-oob": "migrate-recover", "id": 5}',
    '{"exec-oob": "migrate-recover", "arguments": {"uri": "x"}, "id": 6}',
    "nonsense ",
    '{"exec-oob": 1, "id": 7}',
    '{"exec-oob": "migrate-pause", "execute": "stop", "id": 8}',
    '{"foo": 1, "id": 9}',
    '{"exec-oob": "migrate-pause", "foo": 1, "id": 10}',
    "[]",
    '{"exec-oob": "qmp_capabilities", "id": 11}',
    '{"exec-oob": "migrate-pause", "arguments": {"x": 1}, "id": 12}',
    '{"execute": "migrate-pause", "id": 13}',
]


def refuse(text):
    def run(_, __):
        raise QmpError(text)

    return run


def save(_, arguments):
    with open(arguments["filename"], "wb"):
        return {}


@pytest.fixture
def commands_of_migration(monkeypatch):
    """Let our server have what QEMU has: two out-of-band commands, and one that blocks."""
    for name, command in {
        "migrate-pause": Command(
            refuse(
                "migrate-pause is currently only supported during postcopy-active or "
                "postcopy-recover state"
            ),
            allow_oob=True,
        ),
        "migrate-recover": Command(
            refuse("Migrate recover can only be run when postcopy is paused."),
            (Member("uri", String()),),
            allow_oob=True,
        ),
        "pmemsave": Command(
            save,
            (Member("val", Integer()), Member("size", Integer()), Member("filename", String())),
            may_block=True,
        ),
    }.items():
        monkeypatch.setitem(COMMANDS, name, command)


def lines_while_blocked_and_after(address, fifo):
    with Client(address) as client:
        client.negotiate(ENABLE)
        os.mkfifo(fifo)
        # To open a FIFO waits for its reader.
        client.send(
            b'{"execute": "pmemsave", "id": "block", "arguments": '
            b'{"val": 0, "size": 0, "filename": "%b"}}' % os.fsencode(fifo)
        )
        client.send("".join(REQUESTS).encode() + b'{"exec-oob": "nonsense", "id": "blocked"}')
        while_blocked = lines_until(client, "blocked")
        with open(fifo, "rb"):
            client.send(b'{"execute": "nonsense", "id": "end"}')
            return while_blocked, lines_until(client, "end")


def lines_until(client, request_id):
    lines = []
    while not (line := client.line()).startswith(f'{{"id": "{request_id}"'):
        assert line
        lines.append(line)
    return lines


@pytest.mark.usefixtures("commands_of_migration")
def test_the_same_replies_come_while_a_command_blocks_and_after_it(tmp_path):
    address = f"unix:{tmp_path}/oob"
    options = ("-m", "256M", "-qmp", f"{address},server=on,wait=off")
    with (
        Qemu(tmp_path, *options, program=PROGRAM_10),
        serving(f"unix:{tmp_path}/ours") as server,
    ):
        qemu = lines_while_blocked_and_after(address, tmp_path / "fifo of qemu")
        ours = lines_while_blocked_and_after(server.address, tmp_path / "fifo of ours")
    assert [len(lines) for lines in qemu] == [9, 7]
    assert ours == qemu
