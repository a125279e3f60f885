# SPDX-License-Identifier: MIT
"""Pages of a file: mapped and read without a copy, or by pread() where a mapping would harm."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.core import PageState
from pysampler.errors import FaultError, SourceError
from pysampler.host.rights import file_cure
from pysampler.memory.reader.address_space import AddressSpace
from pysampler.units import format_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray
    from pysampler.memory.ramblock import FileMemory, RAMBlock
    from pysampler.memory.reader.opened import Opened


class FileReader:
    """Reads a RAMBlock that is part of a file.

    A read through a mapping fills a hole of a tmpfs or hugetlbfs file, so holes are found first:
    st_blocks tells whether there may be any, SEEK_DATA where they are. hugetlbfs does not have
    SEEK_DATA. There pread() is used as long as there are holes, because it fills nothing. pread()
    is also used where the file cannot be mapped, for want of address space.
    """

    def __init__(self, block: RAMBlock, memory: FileMemory, page_size: int, opened: Opened) -> None:
        self._block = block
        self._page_size = page_size
        self._inode = memory.inode
        self._offset = memory.offset
        self._end = memory.offset + block.used_length
        self._map: memoryview | None = None
        self._user: AddressSpace | None = None
        self._file = opened.file(memory)
        if memory.user is not None:
            process = opened.process(memory.user.pid)
            self._user = AddressSpace(block, memory.user, process)
        magic = core.file_system(self._file.fd)
        self._is_tmpfs = magic == core.TMPFS_MAGIC
        self._is_hugetlbfs = magic == core.HUGETLBFS_MAGIC
        self._look()
        if not (self._is_hugetlbfs and self._has_holes):
            # Merely mapping a hugetlbfs file reserves the huge pages that its holes lack.
            self._map = self._mapping(block.page_size)
        self.states(np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.uint32))

    def _mapping(self, backing_page_size: int) -> memoryview | None:
        # A mapping begins with a page of the file, which may be a huge one.
        before = self._offset % backing_page_size
        begin, end = self._offset - before, self._end + -self._end % backing_page_size
        length = min(end, os.fstat(self._file.fd).st_size) - begin
        try:
            whole = core.map_file(self._file.fd, begin, length)
        except OSError as error:
            if error.errno == errno.ENOMEM:  # `ulimit -v`, or too many mappings
                return None
            raise
        return whole[before : before + self._block.used_length]

    @property
    def access(self) -> str:
        """How pages are read."""
        return "pread" if self._map is None else "mapped"

    def begin_pass(self) -> None:
        """Look at the process, the file's length and allocated blocks, and the host's swap."""
        if self._user is not None:
            self._user.begin_pass()
        self._look()

    def _look(self) -> None:
        status = self._check_length()
        # More than all, as with a huge folio or space reserved past the end, may hide a hole.
        self._has_holes = status.st_blocks * 512 != -(-status.st_size // 4096) * 4096
        self._may_be_swapped = self._is_tmpfs and core.swap_in_use()

    def _check_length(self) -> os.stat_result:
        status = os.fstat(self._file.fd)
        if status.st_size < self._end:
            raise FaultError(
                f"RAMBlock {self._block.idstr} was truncated: {format_size(status.st_size)}"
                f" of its file are left, {format_size(self._end)} are needed",
                idstr=self._block.idstr,
            )
        return status

    def states(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray | None:
        """Return which pages can be read; see Reader."""
        if not (self._has_holes or self._may_be_swapped):
            return None
        states = None
        if self._has_holes:
            states = None if self._is_hugetlbfs else self._data_and_holes(vfns, order)
            states = self._with_awaited(vfns, states)
        if self._may_be_swapped:
            if states is None:
                states = np.full(len(vfns), PageState.PRESENT, dtype=np.uint8)
            try:
                core.mark_swapped(
                    self._file.fd, self._offset, self._map, self._page_size, vfns, states
                )
            except PermissionError as error:
                raise SourceError(
                    f"RAMBlock {self._block.idstr}: this host swaps, and only who may write the"
                    f" file may ask which pages are swapped out: {file_cure('CAP_DAC_OVERRIDE')}"
                ) from error
        return states

    def _data_and_holes(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray | None:
        first = np.uint64(self._offset // self._page_size)
        try:
            return core.states_of_file(self._file.fd, self._page_size, vfns + first, order)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a file system that knows no holes
                return None
            raise

    def _with_awaited(self, vfns: VfnArray, states: StateArray | None) -> StateArray | None:
        """Return the states where those holes of the user are marked that userfaultfd will fill."""
        if self._user is None or (states is not None and not (states == PageState.HOLE).any()):
            return states
        at = vfns * np.uint64(self._page_size) + np.uint64(self._offset)
        for mapping in self._user.process.awaited():
            if mapping.inode != self._inode:
                continue
            length = mapping.end - mapping.start
            inside = (at >= mapping.offset) & (at < mapping.offset + length)
            rows = np.flatnonzero(inside)
            if self._is_hugetlbfs:  # which knows no holes; the process's page tables do
                sorted_rows = np.argsort(vfns[rows], kind="stable").astype(np.uint32)
                missing = self._user.states(
                    self._page_size,
                    vfns[rows],
                    sorted_rows,
                    mapping.start - mapping.offset + self._offset,
                )
                rows = rows[missing != PageState.PRESENT]
            elif states is not None:
                rows = rows[states[rows] == PageState.HOLE]
            else:
                continue
            if states is None:
                states = np.full(len(vfns), PageState.PRESENT, dtype=np.uint8)
            states[rows] = PageState.USERFAULTFD
        return states

    def hash_pages(self, hasher: Hasher, vfns: VfnArray, hashes: HashArray) -> int:
        """Hash pages in order; see Reader."""
        if self._map is None or self._reading_it_may_fill_holes():
            first = np.uint64(self._offset // self._page_size)
            staging = bytearray(self._page_size)
            return core.hash_file(
                hasher, self._file.fd, self._page_size, vfns + first, staging, hashes
            )
        return core.hash_mapped(hasher, self._map, self._page_size, vfns, hashes)

    def _reading_it_may_fill_holes(self) -> bool:
        """Return whether holes may appear after the check, so that the mapping must not be read.

        Reading would fill a page that was punched out with zeros. Under userfaultfd that costs
        more than a page of memory: the process that brings the page fails, and a post-copy
        migration with it.
        """
        if not self._has_holes or self._user is None:
            return self._has_holes and self._is_hugetlbfs
        return self._is_hugetlbfs or any(
            mapping.inode == self._inode for mapping in self._user.process.awaited()
        )

    def copy_page(self, vfn: int) -> bytes:
        """Return a page; see Reader."""
        return os.pread(self._file.fd, self._page_size, self._offset + vfn * self._page_size)

    def check(self) -> None:
        """Raise FaultError when the file was truncated, or its process has ended."""
        if self._user is not None:
            self._user.check()
        self._check_length()

    def end_pass(self) -> None:
        """Raise FaultError when the file was truncated, or let go by its process, meanwhile."""
        if self._user is not None:
            self._user.check_mapped()
        self._check_length()

    def close(self) -> None:
        """Unmap: with its last reference, as an interrupted call may still hold one."""
        self._map = None
