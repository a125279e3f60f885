# SPDX-License-Identifier: MIT
"""Asking a QEMU for its RAMBlocks, by `info ramblock` through its QMP socket."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from pysampler.errors import SourceError
from pysampler.host.qmp_client import QmpClient, QmpError
from pysampler.memory.source.vmm import MIN_FOUND_LENGTH

TIMEOUT_S = 5.0  # for connecting and all replies together
_BLOCKS_MAX = 4096  # a QEMU has a few hundred at most
_NO_TABLE = "it does not answer `info ramblock` as QEMU does"

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
    deadline = time.monotonic() + TIMEOUT_S
    with QmpClient(path, TIMEOUT_S) as client:
        arguments = {"command-line": "info ramblock"}
        try:
            return _blocks(client.execute("human-monitor-command", arguments, deadline))
        except (QmpError, ValueError) as error:
            reason = _NO_TABLE if isinstance(error, QmpError) else error
            raise SourceError(f"QMP socket {path.removeprefix('unix:')}: {reason}") from error


def _blocks(table: object) -> list[ToldBlock]:
    """Return the large RAMBlocks of a table; raise ValueError for one that no QEMU prints."""
    if not isinstance(table, str) or "Block Name" not in table:
        raise ValueError(_NO_TABLE)
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
