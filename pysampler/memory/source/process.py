# SPDX-License-Identifier: MIT
"""RAMBlocks in the memory of a running process."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from pysampler.errors import SourceError, UsageError
from pysampler.host.maps import Mapping, is_mapped, read_maps
from pysampler.host.rights import process_error
from pysampler.host.smaps import read_smaps
from pysampler.memory.ramblock import FileMemory, ProcessMemory, RAMBlock
from pysampler.memory.source.file import file_memory_block
from pysampler.printable import encodable
from pysampler.qemu.dirty_rate import MIN_USED_LENGTH
from pysampler.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

_FEW_DESCRIPTORS = 16

_NAMED_BLOCK = re.compile(r"([^=]+)=(0[xX][0-9a-fA-F]+|\d+):(.+)", re.ASCII)


def named_block(pid: int, text: str) -> RAMBlock:
    """Return the RAMBlock of a process that ``NAME=ADDR:LENGTH`` names.

    Raises:
        UsageError: the text has another form.
        SourceError: no such process, no right to read it, or not all of it is mapped.
    """
    match = _NAMED_BLOCK.fullmatch(text)
    if match is None:
        raise UsageError(f"block: {text!r} is not NAME=ADDR:LENGTH, e.g. ram=0x7f0000000000:1G")
    idstr, digits, size = match.groups()
    idstr = encodable(idstr)
    address, length = int(digits, 0), parse_size(size, f"block {idstr}")
    if address % 4096 or length % 4096:
        raise UsageError(f"block {idstr}: address and length must be multiples of 4096")
    if length < MIN_USED_LENGTH:
        raise UsageError(f"block {idstr}: a RAMBlock has at least {format_size(MIN_USED_LENGTH)}")
    try:
        mappings = read_maps(pid)
    except OSError as error:
        raise process_error(error, pid) from error
    if not is_mapped(mappings, address, length):
        raise SourceError(_why_not_mapped(pid, mappings, idstr, address, address + length))
    for mapping in mappings:
        if mapping.start <= address and address + length <= mapping.end:
            return mapped_block(pid, mapping, idstr, start=address, length=length)
    spanned = [m for m in mappings if m.start < address + length and address < m.end]
    anonymous = all(mapping.is_anonymous for mapping in spanned)
    return RAMBlock(idstr, length, ProcessMemory(pid, address, anonymous))


def mapped_block(
    pid: int,
    mapping: Mapping,
    idstr: str,
    *,
    start: int | None = None,
    length: int | None = None,
    links: dict[str, list[str]] | None = None,
) -> RAMBlock:
    """Return a mapping of a process, or a part of it, as a RAMBlock.

    A shared mapping is read through its file where that can be opened, without a copy. Else, as
    anything private, it is read in the process.

    Args:
        pid: the process.
        mapping: one of it.
        idstr: the RAMBlock's name.
        start: its first address; None for the mapping's.
        length: bytes; None for the mapping's.
        links: of links_of(), for callers with many mappings; looked up when None.
    """
    start = mapping.start if start is None else start
    length = mapping.length if length is None else length
    if mapping.is_anonymous or (mapping.name == "/dev/zero" and not mapping.shared):
        memory = ProcessMemory(pid, start, anonymous=True)
        return RAMBlock(idstr, length, memory, _anonymous_page_size(pid, mapping))
    user = ProcessMemory(pid, start)
    for path in _paths_of(pid, mapping, links_of(pid) if links is None else links):
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) != mapping.inode:
                continue
            offset = mapping.offset + start - mapping.start
            block = file_memory_block(path, idstr, offset=offset, used_length=length, user=user)
        except (OSError, SourceError):
            continue  # the next way may be open
        if mapping.shared or not isinstance(block.memory, FileMemory):
            return block
        # What the process has not touched is in the file, what it has written is its own.
        return replace(block, memory=replace(user, file=replace(block.memory, user=None)))
    return RAMBlock(idstr, length, user)


def _anonymous_page_size(pid: int, mapping: Mapping) -> int:
    """Return the bytes of the pages that back anonymous memory."""
    if mapping.inode == (0, 0):
        return 4096
    try:
        # MAP_HUGETLB: the file that is behind it is on the kernel's own hugetlbfs.
        return os.statvfs(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}").f_bsize
    except OSError:  # only CAP_CHECKPOINT_RESTORE may ask that
        return next(
            (m.page_size or 4096 for m in read_smaps(pid) if m.start == mapping.start), 4096
        )


def links_of(pid: int) -> dict[str, list[str]]:
    """Return the descriptors of a process by the name of their target."""
    folder, links = f"/proc/{pid}/fd", defaultdict(list)
    with suppress(OSError):  # it may not let us look
        for fd in os.listdir(folder):
            with suppress(OSError):  # it may close descriptors meanwhile
                links[os.readlink(f"{folder}/{fd}")].append(f"{folder}/{fd}")
    return links


def _paths_of(pid: int, mapping: Mapping, links: dict[str, list[str]]) -> Iterator[str]:
    """Yield the ways to open the file of a mapping, the least privileged first."""
    # What the name of a descriptor leads to ends as the mapping's name does. Of many with one
    # name, only map_files tells quickly which it is.
    paths = links.get(mapping.name, [])
    if len(paths) <= _FEW_DESCRIPTORS:
        yield from paths
    yield f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    if len(paths) > _FEW_DESCRIPTORS:
        yield from paths
    yield mapping.name


def _why_not_mapped(pid: int, mappings: list[Mapping], idstr: str, start: int, end: int) -> str:
    for mapping in mappings:
        if mapping.start <= start < mapping.end:
            return (
                f"block {idstr}: ends at {end:#x}, past the end of its mapping at"
                f" {mapping.end:#x}; at most {mapping.end - start} bytes are there"
            )
    return f"block {idstr}: process {pid} has nothing mapped at {start:#x}"
