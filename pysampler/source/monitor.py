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

_TIMEOUT_S = 5.0  # for all of it
_REPLIES_MAX = 8 << 20  # bytes of all replies

_COMMANDS = (
    {"execute": "qmp_capabilities"},
    {"execute": "human-monitor-command", "arguments": {"command-line": "info ramblock"}},
)

# Name, page size, offset, used and total length; newer QEMUs add where it is in their memory.
_ROW = re.compile(
    r"^\s*(\S+)\s+\d+ \wiB\s+0x[0-9a-f]{16} 0x([0-9a-f]{16}) 0x[0-9a-f]{16}"
    r"(?:\s+0x([0-9a-f]{16})\b)?",
    re.MULTILINE | re.ASCII,
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
    """Return the RAMBlocks of the QEMU whose monitor listens at a path, ``unix:`` before it or not.

    Raises:
        SourceError: nobody listens there, or does not answer within 5 s as QEMU does.
    """
    path = path.removeprefix("unix:")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
        try:
            return _ask(monitor, path)
        except TimeoutError as error:
            raise SourceError(
                f"QMP socket {path}: no answer within {_TIMEOUT_S:g} s; QEMU serves one client at a"
                " time"
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise SourceError(f"QMP socket {path}: {reason}") from error


def _ask(monitor: socket.socket, path: str) -> list[ToldBlock]:
    deadline = time.monotonic() + _TIMEOUT_S
    monitor.settimeout(_TIMEOUT_S)
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
    return [
        ToldBlock(name.rpartition("/")[2], int(used, 16), int(address, 16) if address else None)
        for name, used, address in _ROW.findall(table)
    ]


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
