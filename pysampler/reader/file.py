# SPDX-License-Identifier: MIT
"""Pages of a file: mapped and read without a copy, or by pread() where a mapping would harm."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.errors import FaultError, SourceError
from pysampler.units import format_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray
    from pysampler.ramblock import FileMemory, RAMBlock

_HUGE_FOLIO = 2 << 20


class FileReader:
    """Reads a RAMBlock that is part of a file.

    A read through a mapping fills a hole of a tmpfs or hugetlbfs file, so holes are found first:
    whether there are any by st_blocks, which they are by SEEK_DATA. hugetlbfs does not know
    SEEK_DATA; there pread(), which fills nothing, is used as long as there are holes.
    """

    def __init__(self, block: RAMBlock, memory: FileMemory, page_size: int) -> None:
        self._block = block
        self._page_size = page_size
        self._offset = memory.offset
        self._end = memory.offset + block.used_length
        self._map: mmap.mmap | None = None
        # O_NONBLOCK: should the path lead to a FIFO by now, open() must not wait for a writer.
        self._fd = os.open(memory.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self._fd)
            if (status.st_dev, status.st_ino) != memory.inode:
                raise SourceError(f"{memory.path}: not the file any more that was found; try again")
            magic = core.file_system(self._fd)
            self._is_tmpfs = magic == core.TMPFS_MAGIC
            self._is_hugetlbfs = magic == core.HUGETLBFS_MAGIC
            self.begin_pass()
            if not (self._is_hugetlbfs and self._has_holes):
                # Merely mapping a hugetlbfs file reserves the huge pages that its holes lack.
                self._map = mmap.mmap(
                    self._fd,
                    block.used_length,
                    flags=mmap.MAP_SHARED,
                    prot=mmap.PROT_READ,
                    offset=memory.offset,
                )
        except BaseException:
            self.close()
            raise

    @property
    def access(self) -> str:
        """How pages are read."""
        return "pread" if self._map is None else "mapped"

    def begin_pass(self) -> None:
        """Look at the file's length and allocated blocks, and at the host's swap."""
        status = os.fstat(self._fd)
        if status.st_size < self._end:
            raise FaultError(
                f"RAMBlock {self._block.idstr} was truncated: {format_size(status.st_size)}"
                f" of its file are left, {format_size(self._end)} are needed",
                idstr=self._block.idstr,
            )
        # A huge folio at the end of a tmpfs file may reach past it and make up for a hole.
        beyond = -status.st_size % _HUGE_FOLIO if self._is_tmpfs else 0
        allocated = status.st_blocks * 512 - beyond
        # A hole on a disk is not filled by reading it.
        is_memory = self._is_tmpfs or self._is_hugetlbfs
        self._has_holes = is_memory and allocated < status.st_size
        self._may_be_swapped = self._is_tmpfs and _swap_in_use()

    def states(
        self, vfns: VfnArray, order: NDArray[np.uint32], known: StateArray | None
    ) -> StateArray | None:
        """Return which pages can be read; see Reader."""
        del known
        if self._is_hugetlbfs or self._map is None:
            return None
        if not (self._has_holes or self._may_be_swapped):
            return None
        if self._has_holes:
            first = np.uint64(self._offset // self._page_size)
            states = core.states_of_file(self._fd, self._page_size, vfns + first, order)
        else:
            states = np.full(len(vfns), core.PageState.PRESENT, dtype=np.uint8)
        if self._may_be_swapped:
            core.mark_swapped(self._fd, self._offset, self._map, self._page_size, vfns, states)
        return states

    def hash_pages(self, hasher: Hasher, vfns: VfnArray, hashes: HashArray) -> int:
        """Hash pages in order; see Reader."""
        if self._map is None or (self._is_hugetlbfs and self._has_holes):
            first = np.uint64(self._offset // self._page_size)
            staging = bytearray(self._page_size)
            return core.hash_file(hasher, self._fd, self._page_size, vfns + first, staging, hashes)
        return core.hash_mapped(hasher, self._map, self._page_size, vfns, hashes)

    def copy_page(self, vfn: int) -> bytes:
        """Return a page; see Reader."""
        return os.pread(self._fd, self._page_size, self._offset + vfn * self._page_size)

    def end_pass(self) -> None:
        """Raise FaultError when the file was truncated meanwhile."""
        self.begin_pass()

    def close(self) -> None:
        """Unmap and close."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _swap_in_use() -> bool:
    """Return whether anything is swapped out on this host."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        sizes = dict(line.split(":", 1) for line in meminfo)
    return sizes.get("SwapTotal") != sizes.get("SwapFree")
