# SPDX-License-Identifier: MIT
"""Tracked memory: where a process has RAMBlocks mapped, and the bitmap of their dirty pages."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler import core
from pysampler.core import HOST_PAGE_SIZE, Range
from pysampler.errors import FaultError, SourceError
from pysampler.host.maps import Mapping, is_mapped, read_maps
from pysampler.host.rights import check_proc, process_error
from pysampler.memory.ramblock import BufferMemory, FileMemory, RAMBlock
from pysampler.qemu.dirty_rate import MIN_USED_LENGTH, PAGE_SIZE
from pysampler.tracking.pages import block_details
from pysampler.tracking.room import BYTES_PER_PAGE_TRACKED, check_room

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

# A vector counts pages of PAGE_SIZE; the kernel tracks those of the host.
PAGES_PER_BIT = HOST_PAGE_SIZE // PAGE_SIZE


class UntrackableError(SourceError):
    """Memory whose writes cannot be tracked; its content can still be compared."""


class TrackedMemory:
    """RAMBlocks as one process has them mapped, with a bit for each page.

    A block that is mapped more than once has several ranges with the same bits. Writes by other
    processes, through their own mappings or by write(), are not seen.

    Attributes:
        blocks: those of at least 128 KiB.
        ranges: where they are mapped.
        bitmap: dirty pages, uint8, least significant bit first.
        n_total_pages: pages of 4096 bytes of all blocks.

    Args:
        blocks: RAMBlocks.
        pid: the process whose writes are tracked.
        extra: bytes that the tracker takes beside what each page needs.

    Raises:
        UntrackableError: a block is not mapped there, or not at a page's beginning.
        SourceError: no such process, or no block.
    """

    def __init__(self, blocks: Sequence[RAMBlock], pid: int, extra: int = 0) -> None:
        self.blocks = tuple(block for block in blocks if block.used_length >= MIN_USED_LENGTH)
        if not self.blocks:
            raise SourceError("there is no RAMBlock of at least 128 KiB to track")
        self._pid = pid
        self.n_total_pages = sum(block.used_length // PAGE_SIZE for block in self.blocks)
        check_room(self.n_total_pages * BYTES_PER_PAGE_TRACKED + extra, self.n_total_pages)
        check_proc()
        try:
            mappings = read_maps(pid)
        except OSError as error:
            raise process_error(error, pid) from error
        self._first_bits: list[int] = []
        self.ranges: list[Range] = []
        self._owners: list[RAMBlock] = []
        first_bit = 0
        for block in self.blocks:
            self._first_bits.append(first_bit)
            for memory in _ranges_of(block, pid, mappings, first_bit):
                self.ranges.append(memory)
                self._owners.append(block)
            # Each block begins with a byte of its own.
            first_bit += -(-block.used_length // HOST_PAGE_SIZE // 8) * 8
        self.bitmap = np.zeros(first_bit // 8, dtype=np.uint8)

    def block_details(self) -> list[dict[str, Any]]:
        """Return the description of each block for the vector."""
        grains = {
            block.idstr: memory.page_size
            for block, memory in zip(self._owners, self.ranges, strict=True)
        }
        return [
            {**of_block, "tracking-page-size": grains[of_block["idstr"]]}
            for of_block in block_details(self.blocks)
        ]

    def dirty_pages(self, idstr: str) -> NDArray[np.bool_]:
        """Return for each page of a block whether it is known to be dirty."""
        i = [block.idstr for block in self.blocks].index(idstr)
        n = self.blocks[i].used_length // HOST_PAGE_SIZE
        first = self._first_bits[i] // 8
        part = self.bitmap[first : first + -(-n // 8)]
        return np.unpackbits(part, count=n, bitorder="little").astype(np.bool_)

    def owner(self, memory: Range) -> RAMBlock:
        """Return the block that a range belongs to."""
        return self._owners[self.ranges.index(memory)]

    def check(self) -> None:
        """Check that all blocks are still mapped.

        Raises:
            FaultError: it is not.
        """
        try:
            mappings = read_maps(self._pid)
        except OSError:
            mappings = []
        for memory, block in zip(self.ranges, self._owners, strict=True):
            if not is_mapped(mappings, memory.address, memory.length):
                why = "has unmapped it, or a part of it" if mappings else "has ended"
                raise FaultError(
                    f"RAMBlock {block.idstr}: process {self._pid} {why}", idstr=block.idstr
                )


def _ranges_of(
    block: RAMBlock, pid: int, mappings: list[Mapping], first_bit: int
) -> Iterator[Range]:
    if isinstance(block.memory, FileMemory):
        yield from _ranges_of_file(block, block.memory, pid, mappings, first_bit)
        return
    if isinstance(block.memory, BufferMemory):
        if pid != os.getpid():
            raise UntrackableError(
                f"RAMBlock {block.idstr} is a buffer of this process, not of {pid}"
            )
        address = core.address_of(block.memory.buffer)
    elif block.memory.address is None:
        raise UntrackableError(f"RAMBlock {block.idstr} has no address")
    else:
        address = block.memory.address
    if address % HOST_PAGE_SIZE or block.used_length % HOST_PAGE_SIZE:
        raise UntrackableError(
            f"RAMBlock {block.idstr} does not begin and end with a page, so its pages cannot be"
            " tracked; take memory of mmap.mmap() or multiprocessing.shared_memory"
        )
    yield Range(address, block.used_length, first_bit)


def _ranges_of_file(
    block: RAMBlock, memory: FileMemory, pid: int, mappings: list[Mapping], first_bit: int
) -> Iterator[Range]:
    begin, end = memory.offset, memory.offset + block.used_length
    reached = begin
    views = [m for m in mappings if m.inode == memory.inode and m.shared and m.writable]
    for mapping in sorted(views, key=lambda m: m.offset):
        low = max(begin, mapping.offset)
        high = min(end, mapping.offset + mapping.length)
        if low < high:
            address = mapping.start + low - mapping.offset
            yield Range(address, high - low, first_bit + (low - begin) // HOST_PAGE_SIZE)
            if low <= reached:
                reached = max(reached, high)
    if reached < end and any(
        m.inode == memory.inode and m.writable for m in mappings if not m.shared
    ):
        raise SourceError(
            f"RAMBlock {block.idstr}: process {pid} has {memory.path} mapped privately, so what it"
            " writes is in its own memory and never in the file; name it with --block"
        )
    if reached < end:
        raise UntrackableError(
            f"RAMBlock {block.idstr}: process {pid} does not have all of {memory.path} mapped"
            " writable, so its writes cannot be tracked"
        )
