"""QEMU's monitor, asked for RAMBlocks: what it says is data as well."""

import json
import os
import socket
import threading
from contextlib import suppress

import pytest

from pysampler.errors import SourceError
from pysampler.host.maps import Mapping
from pysampler.memory.source import monitor
from pysampler.memory.source.monitor import ToldBlock, ask_ramblocks
from pysampler.memory.source.qemu_truth import as_qemu_says
from pysampler.units import MIB

GREETING = json.dumps({"QMP": {"version": {}, "capabilities": []}}).encode() + b"\r\n"
DONE = b'{"return": {}}\r\n'
TABLE_7 = """
              Block Name    PSize              Offset               Used              Total
                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000
   0000:00:02.0/vga.vram    2 MiB  0x0000000010080000 0x0000000001000000 0x0000000002000000
                            4 KiB  0x0000000020000000 0x0000000001000000 0x0000000001000000
                pc.bios    4 KiB  0x0000000030000000 0x0000000000040000 0x0000000000040000
"""
TABLE_10 = """
    Block Name    PSize              Offset               Used              Total                HVA  RO
        pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000 0x00007f0000000000  rw
"""


@pytest.fixture
def answering(tmp_path):
    """Listen at a path and send some bytes, whatever is asked; return the path."""
    threads, sockets = [], []

    def answer(*parts, stays=False):
        path = str(tmp_path / f"qmp{len(sockets)}")
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(path)
        listening.listen()
        sockets.append(listening)

        def serve():
            client, _ = listening.accept()
            sockets.append(client)
            with suppress(OSError):  # nobody listens any more
                for part in parts:
                    client.sendall(part)
                if not stays:
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(4096):
                        pass
                    client.close()

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return path

    yield answer
    for thread in threads:
        thread.join(10)
    for opened in sockets:
        opened.close()


def reply(table):
    return json.dumps({"return": table}).encode() + b"\r\n"


@pytest.mark.parametrize(
    ("table", "blocks"),
    [
        (TABLE_7, [ToldBlock("pc.ram", 256 * MIB, None), ToldBlock("vga.vram", 16 * MIB, None)]),
        (TABLE_10, [ToldBlock("pc.ram", 256 * MIB, 0x7F0000000000)]),
    ],
)
def test_tables_of_both_generations_are_read(answering, table, blocks):
    event = b'{"event": "RESUME", "timestamp": {}}\r\n'
    path = answering(GREETING, event, DONE, event, reply(table))
    assert ask_ramblocks(f"unix:{path}") == blocks


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([b""], "ends the session"),
        ([b"\n"], "does not answer with JSON objects"),
        ([b"[" * 1_000_000, b"\n"], "does not answer with JSON objects"),
        ([b'{"QMP": ' + b"9" * 5000 + b"}\n"], "does not answer with JSON objects"),
        ([b"\xff\xfe\n"], "does not answer with JSON objects"),
        ([b'{"hello": 1}\n'], "does not greet as QMP does"),
        ([GREETING, DONE], "ends the session"),
        ([GREETING, DONE, b'{"return": 5}\n'], "does not answer `info ramblock` as QEMU does"),
        ([GREETING, DONE, b'{"error": {"class": "CommandNotFound"}}\n'], "`info ramblock` as QEMU"),
        ([GREETING, *[b"{" * 65536] * 200], "says too much"),
    ],
)
def test_whoever_is_no_qemu_is_one_clear_line(answering, parts, message):
    with pytest.raises(SourceError, match=message) as raised:
        ask_ramblocks(answering(*parts))
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("QMP socket /")


def row(address=1 << 40, length=16 * MIB, name="ram"):
    return f"{name:>20}    4 KiB  0x{0:016x} 0x{length:016x} 0x{length:016x} 0x{address:016x} rw\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row()], "overlap"),
        ([row(length=64 * MIB), row((1 << 40) + 32 * MIB)], "overlap"),
        ([row((1 << 40) + 1)], "not of whole pages"),
        ([row(length=16 * MIB + 77)], "not of whole pages"),
        ([row(i << 32) for i in range(1, 5000)], "tells of 4999 RAMBlocks, more than a QEMU has"),
    ],
)
def test_what_no_qemu_tells_of_is_refused(answering, rows, message):
    with pytest.raises(SourceError, match=message):
        ask_ramblocks(answering(GREETING, DONE, reply("Block Name\n" + "".join(rows))))


@pytest.mark.parametrize("blank", ["\n", " \n", "\t", "x ", "x\n"])
def test_a_table_of_nothing_is_read_in_linear_time(answering, blank):
    """A quadratic search takes minutes for each."""
    assert ask_ramblocks(answering(GREETING, DONE, reply("Block Name" + blank * 1_000_000))) == []


def test_blocks_that_are_all_elsewhere_are_named_and_what_is_there_is_not_denied():
    mappings = [memory(1 << 40, 64)]
    for told, words in [
        ([ToldBlock("pc.ram", 64 * MIB, 1 << 41)], "pc.ram"),
        ([], "none of 16 MiB"),
    ]:
        with pytest.raises(SourceError, match=f"not in its memory: {words}") as raised:
            as_qemu_says(told, [("ram@1", mappings[0])], mappings)
        assert "is it the socket of another QEMU?" in str(raised.value)


def test_a_monitor_that_is_silent_is_not_waited_for_without_end(answering, monkeypatch):
    monkeypatch.setattr(monitor, "TIMEOUT_S", 0.05)
    with pytest.raises(SourceError, match=r"no answer within 0\.05 s; QEMU serves one client"):
        ask_ramblocks(answering(GREETING, stays=True))


@pytest.mark.parametrize("path", ["/nowhere/at/all", "", "a\0b", "x" * 200, os.devnull])
def test_a_path_without_a_monitor_is_named(path):
    with pytest.raises(SourceError, match="QMP socket "):
        ask_ramblocks(path)


def memory(start, mib, inode=0):
    return Mapping(
        start, start + mib * MIB, True, False, True, bool(inode), 0, (1 if inode else 0, inode), ""
    )


def test_addresses_that_are_not_mapped_are_refused_and_said():
    mappings = [memory(1 << 40, 64), memory((1 << 40) + 64 * MIB, 64, inode=5)]
    told = [
        ToldBlock("is", 32 * MIB, (1 << 40) + 16 * MIB),
        ToldBlock("ends-past", 64 * MIB, (1 << 40) + 80 * MIB),
        ToldBlock("in-two", 64 * MIB, (1 << 40) + 32 * MIB),
        ToldBlock("nowhere", 16 * MIB, (1 << 64) - 4096),
    ]
    blocks, remarks = as_qemu_says(told, [], mappings)
    assert [(name, m.start - (1 << 40), m.length) for name, m in blocks] == [
        ("is", 16 * MIB, 32 * MIB)
    ]
    (remark,) = remarks
    assert "ends-past (64 MiB), in-two (64 MiB), nowhere (16 MiB)" in remark


def test_lengths_tell_where_addresses_are_not_told():
    found = [("a", memory(1 << 40, 64)), ("ram@2", memory(1 << 41, 32)), ("x", memory(1 << 42, 16))]
    told = [ToldBlock("dimm", 32 * MIB, None), ToldBlock("a", 64 * MIB, None)]
    blocks, remarks = as_qemu_says(told, found, [m for _, m in found])
    assert {(name, m.start) for name, m in blocks} == {("a", 1 << 40), ("dimm", 1 << 41)}
    assert remarks == ["not sampled, since it is no RAMBlock that QEMU migrates: x (16 MiB)"]
