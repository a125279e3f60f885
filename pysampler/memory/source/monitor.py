# SPDX-License-Identifier: MIT
"""Asking a QEMU for its RAMBlocks, by `info ramblock` through its QMP socket."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Any

from pysampler.errors import SourceError
from pysampler.memory.source.vmm import MIN_FOUND_LENGTH

TIMEOUT_S = 5.0  # for connecting and all replies together
_REPLIES_MAX = 8 << 20  # bytes of all replies
_BLOCKS_MAX = 4096  # a QEMU has a few hundred at most

_COMMANDS = (
    {"execute": "qmp_capabilities"},
    {"execute": "human-monitor-command", "arguments": {"command-line": "info ramblock"}},
)

# Name, page size, offset, used and total length; newer QEMUs add where it is in their memory.
# Matched line by line: over many lines at once, empty ones would take quadratic time.
_ROW = re.compile(
    r"\s*(\S+)\s+\d+ \wiB\s+0x[0-9a-f]{16} 0x([0-9a-f]{16}) 0x[0-9a-f]{16}"
    r"(?:\s+0x([0-9a-f]{16})\b)?",
    re.ASCII,
)


@dataclass(frozen=True)
class ToldBlock:
    """A RAMBlock as QEMU tells of it.

    Attributes:
        idstr: its name, without the path of its device.
        used_length: bytes.
        address: in QEMU's memory; None where QEMU does not say (before 10).
    """

    idstr: str
    used_length: int
    address: int | None


def ask_ramblocks(path: str) -> list[ToldBlock]:
    """Return the RAMBlocks, from 16 MiB up, of the QEMU whose monitor listens at a path.

    Args:
        path: of its socket, ``unix:`` before it or not.

    Raises:
        SourceError: nobody listens there, or does not answer within `TIMEOUT_S` as QEMU does.
    """
    path = path.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
        try:
            return _ask(monitor, path)
        except TimeoutError as error:
            raise SourceError(
                f"QMP socket {path}: no answer within {TIMEOUT_S:g} s; QEMU serves one client at a"
                " time"
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise SourceError(f"QMP socket {path}: {reason}") from error


def _ask(monitor: socket.socket, path: str) -> list[ToldBlock]:
    deadline = time.monotonic() + TIMEOUT_S
    monitor.settimeout(TIMEOUT_S)
    monitor.connect(path)
    lines = _Lines(monitor, deadline)
    reply = lines.next()
    if "QMP" not in reply:
        raise ValueError("whoever listens there does not greet as QMP does")
    for command in _COMMANDS:
        monitor.sendall(json.dumps(command).encode() + b"\n")
        reply = lines.next()
        while "return" not in reply and "error" not in reply:  # events come between
            reply = lines.next()
    table = reply.get("return")
    if not isinstance(table, str) or "Block Name" not in table:
        raise ValueError("it does not answer `info ramblock` as QEMU does")
    rows = [row.groups() for row in map(_ROW.match, table.split("\n")) if row]
    blocks = [
        ToldBlock(name.rpartition("/")[2], int(used, 16), int(address, 16) if address else None)
        for name, used, address in rows
    ]
    large = [block for block in blocks if block.used_length >= MIN_FOUND_LENGTH]
    _check(large)
    return large


def _check(blocks: list[ToldBlock]) -> None:
    """Raise ValueError for RAMBlocks that no QEMU can have."""
    if len(blocks) > _BLOCKS_MAX:
        raise ValueError(f"it tells of {len(blocks)} RAMBlocks, more than a QEMU has")
    end = 0
    for address, length in sorted((block.address or 0, block.used_length) for block in blocks):
        if address % 4096 or length % 4096:
            raise ValueError("it tells of a RAMBlock that is not of whole pages")
        if address:
            if address < end:
                raise ValueError("it tells of RAMBlocks that overlap")
            end = address + length


class _Lines:
    """The lines that a monitor sends, each a JSON object."""

    def __init__(self, monitor: socket.socket, deadline: float) -> None:
        self._monitor = monitor
        self._deadline = deadline
        self._data = b""
        self._left = _REPLIES_MAX

    def next(self) -> dict[str, Any]:
        while b"\n" not in self._data:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._monitor.settimeout(left_s)
            chunk = self._monitor.recv(1 << 16)
            self._left -= len(chunk)
            if not chunk or self._left < 0:
                raise ValueError("it ends the session" if not chunk else "it says too much")
            self._data += chunk
        line, _, self._data = self._data.partition(b"\n")
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            reply = None
        if not isinstance(reply, dict):
            raise ValueError("it does not answer with JSON objects")  # noqa: TRY004 - text from outside
        return reply
