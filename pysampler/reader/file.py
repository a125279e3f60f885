# SPDX-License-Identifier: MIT
"""Pages of a file: mapped and read without a copy, or by pread() where a mapping would harm."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.errors import FaultError, SourceError
from pysampler.reader.address_space import AddressSpace
from pysampler.rights import file_cure, process_error
from pysampler.units import format_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray
    from pysampler.ramblock import FileMemory, RAMBlock


class FileReader:
    """Reads a RAMBlock that is part of a file.

    A read through a mapping fills a hole of a tmpfs or hugetlbfs file, so holes are found first:
    whether there may be any by st_blocks, which they are by SEEK_DATA. hugetlbfs does not know
    SEEK_DATA; there pread(), which fills nothing, is used as long as there are holes.
    """

    def __init__(self, block: RAMBlock, memory: FileMemory, page_size: int) -> None:
        self._block = block
        self._page_size = page_size
        self._offset = memory.offset
        self._end = memory.offset + block.used_length
        self._map: memoryview | None = None
        self._user: AddressSpace | None = None
        self._fd = _open(memory.path)
        try:
            status = os.fstat(self._fd)
            if (status.st_dev, status.st_ino) != memory.inode:
                raise SourceError(f"{memory.path}: not the file any more that was found; try again")
            if memory.user is not None:
                self._user = self._watch(memory)
            magic = core.file_system(self._fd)
            self._is_tmpfs = magic == core.TMPFS_MAGIC
            self._is_hugetlbfs = magic == core.HUGETLBFS_MAGIC
            self.begin_pass()
            if not (self._is_hugetlbfs and self._has_holes):
                # Merely mapping a hugetlbfs file reserves the huge pages that its holes lack.
                self._map = self._mapping(block.page_size)
            self.states(np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.uint32))
        except BaseException:
            self.close()
            raise

    def _watch(self, memory: FileMemory) -> AddressSpace:
        assert memory.user is not None  # noqa: S101 (for the type checker)
        try:
            return AddressSpace(self._block, memory.user)
        except OSError as error:
            raise process_error(error, memory.user.pid) from error

    def _mapping(self, backing_page_size: int) -> memoryview:
        # A mapping begins with a page of the file, which may be a huge one.
        before = self._offset % backing_page_size
        begin, end = self._offset - before, self._end + -self._end % backing_page_size
        length = min(end, os.fstat(self._fd).st_size) - begin
        whole = mmap.mmap(
            self._fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=begin
        )
        return memoryview(whole)[before : before + self._block.used_length]

    @property
    def access(self) -> str:
        """How pages are read."""
        return "pread" if self._map is None else "mapped"

    def begin_pass(self) -> None:
        """Look at the process, the file's length and allocated blocks, and the host's swap."""
        if self._user is not None:
            self._user.check()
        status = os.fstat(self._fd)
        if status.st_size < self._end:
            raise FaultError(
                f"RAMBlock {self._block.idstr} was truncated: {format_size(status.st_size)}"
                f" of its file are left, {format_size(self._end)} are needed",
                idstr=self._block.idstr,
            )
        # More than all, as with a huge folio or space reserved past the end, may hide a hole.
        self._has_holes = status.st_blocks * 512 != -(-status.st_size // 4096) * 4096
        self._may_be_swapped = self._is_tmpfs and _swap_in_use()

    def states(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray | None:
        """Return which pages can be read; see Reader."""
        if self._is_hugetlbfs or not (self._has_holes or self._may_be_swapped):
            return None
        states = self._data_and_holes(vfns, order) if self._has_holes else None
        if self._may_be_swapped and self._map is not None:
            if states is None:
                states = np.full(len(vfns), core.PageState.PRESENT, dtype=np.uint8)
            try:
                core.mark_swapped(self._fd, self._offset, self._map, self._page_size, vfns, states)
            except PermissionError as error:
                raise SourceError(
                    f"RAMBlock {self._block.idstr}: this host swaps, and only who may write the"
                    f" file may ask which pages are swapped out: {file_cure('CAP_DAC_OVERRIDE')}"
                ) from error
        return states

    def _data_and_holes(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray | None:
        first = np.uint64(self._offset // self._page_size)
        try:
            return core.states_of_file(self._fd, self._page_size, vfns + first, order)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a file system that knows no holes
                return None
            raise

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
        """Raise FaultError when the file was truncated, or let go by its process, meanwhile."""
        if self._user is not None:
            self._user.check_mapped()
        self.begin_pass()

    def close(self) -> None:
        """Unmap and close."""
        # Unmapped with its last reference: an interrupted call may still hold one.
        self._map = None
        if self._user is not None:
            self._user.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(path: str) -> int:
    # O_NONBLOCK: should the path lead to a FIFO by now, open() must not wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # only the owner may leave the time of access as it is
        return os.open(path, flags)


def _swap_in_use() -> bool:
    """Return whether anything is swapped out on this host."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        sizes = dict(line.split(":", 1) for line in meminfo)
    return sizes.get("SwapTotal") != sizes.get("SwapFree")
