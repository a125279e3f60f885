# SPDX-License-Identifier: MIT
"""Pages of another process's private memory, copied by process_vm_readv()."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.core import PageState
from pysampler.errors import SourceError
from pysampler.host.rights import check_proc, process_error
from pysampler.memory.reader.address_space import AddressSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray
    from pysampler.memory.ramblock import ProcessMemory, RAMBlock
    from pysampler.memory.reader.descriptor import Descriptor
    from pysampler.memory.reader.opened import Opened

_STAGING_PAGES = 32
# Of a private file, pages are asked about and read so many at a time: little is read twice
# when one of them cannot be read.
_PAGES_AT_ONCE = 512


class ProcessReader:
    """Reads a RAMBlock in the address space of another process.

    Reading an absent page would bring it in, as a zero page or from swap. So each pass asks
    pagemap first: a page may be given back or swapped out at any time. Pages of a private file
    that the process has not touched are read from the file.
    """

    access = "process_vm_readv"

    def __init__(
        self,
        block: RAMBlock,
        memory: ProcessMemory,
        address: int,
        page_size: int,
        opened: Opened,
    ) -> None:
        self._memory = memory
        self._address = address
        self._page_size = page_size
        self._space = AddressSpace(block, memory, opened.process(memory.pid))
        self._file: Descriptor | None = None
        if memory.file is not None:
            with suppress(PermissionError, FileNotFoundError, SourceError):
                self._file = opened.file(memory.file)
        _check_rights(memory.pid, page_size)

    def begin_pass(self) -> None:
        """Check that the process is there."""
        self._space.begin_pass()

    def states(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray:
        """Return which pages can be read; see Reader."""
        states = self._space.states(self._page_size, vfns, order, self._address)
        if not self._memory.anonymous:
            untouched = states == PageState.HOLE
            if untouched.any():
                states[untouched] = self._states_in_file(vfns[untouched])
        return states

    def _states_in_file(self, vfns: VfnArray) -> StateArray:
        """Return the states of pages that the process has not touched."""
        if self._file is None:
            return np.full(len(vfns), PageState.FILE, dtype=np.uint8)
        # Where the file has no page, the process has none either.
        n_pages = os.fstat(self._file.fd).st_size // self._page_size
        closed = vfns + self._first_in_file() >= np.uint64(n_pages)
        return np.where(closed, PageState.CLOSED, PageState.PRESENT).astype(np.uint8)

    def _first_in_file(self) -> np.uint64:
        assert self._memory.file is not None  # noqa: S101 (for the type checker)
        return np.uint64(self._memory.file.offset // self._page_size)

    def hash_pages(self, hasher: Hasher, vfns: VfnArray, hashes: HashArray) -> int:
        """Hash pages in order; see Reader."""
        staging = bytearray(_STAGING_PAGES * self._page_size)
        if self._file is None:
            return self._hash_touched(hasher, vfns, staging, hashes)
        for begin in range(0, len(vfns), _PAGES_AT_ONCE):
            end = min(begin + _PAGES_AT_ONCE, len(vfns))
            done = self._hash_of_file(hasher, vfns[begin:end], staging, hashes[begin:end])
            if begin + done < end:
                return begin + done
        return len(vfns)

    def _hash_of_file(
        self, hasher: Hasher, vfns: VfnArray, staging: bytearray, hashes: HashArray
    ) -> int:
        """Hash pages of a private file, each from the place of its present content."""
        assert self._file is not None  # noqa: S101 (for the type checker)
        order = np.argsort(vfns, kind="stable").astype(np.uint32)
        states = self._space.states(self._page_size, vfns, order, self._address)
        touched, in_file = states == PageState.PRESENT, states == PageState.HOLE
        fd, first = self._file.fd, self._first_in_file()

        def hash_touched(some: VfnArray, found: HashArray) -> int:
            return self._hash_touched(hasher, some, staging, found)

        def hash_in_file(some: VfnArray, found: HashArray) -> int:
            return core.hash_file(hasher, fd, self._page_size, some + first, staging, found)

        groups = ((touched, hash_touched), (in_file, hash_in_file))
        readable = _hash_in_groups(groups, vfns, hashes)
        lost = np.flatnonzero(states > PageState.HOLE)
        return min(readable, int(lost[0])) if len(lost) else readable

    def _hash_touched(
        self, hasher: Hasher, vfns: VfnArray, staging: bytearray, hashes: HashArray
    ) -> int:
        """Hash pages that are present.

        process_vm_readv() is faster than /proc/PID/mem. But it would wait for a page that goes
        missing under userfaultfd. And it would give the process a copy of each shared page.
        """
        process = self._space.process

        def hash_by_mem(some: VfnArray, found: HashArray) -> int:
            first = np.uint64(self._address // self._page_size)
            return core.hash_file(
                hasher, process.memory(), self._page_size, some + first, staging, found
            )

        def hash_remote(some: VfnArray, found: HashArray) -> int:
            return core.hash_remote(
                hasher, process.pid, self._address, self._page_size, some, staging, found
            )

        try:
            if process.holds_userfaultfd():
                done = hash_by_mem(vfns, hashes)
            else:
                shared = self._space.shared(vfns)
                groups = ((~shared, hash_remote), (shared, hash_by_mem))
                done = _hash_in_groups(groups, vfns, hashes)
        except ProcessLookupError:
            self._space.gone("the process has ended")
        except PermissionError:
            self._space.gone("the process may not be read any more")
        self._space.check()  # else another process may have had the pid
        return done

    def copy_page(self, vfn: int) -> bytes:
        """Return a page; see Reader."""
        page, vfns = bytearray(self._page_size), np.array([vfn], dtype=np.uint64)
        hasher, hashes = core.Hasher(core.Hash.READ), np.zeros_like(vfns)
        # What the hash is computed of is a copy.
        if self._file is None:
            done = self._hash_touched(hasher, vfns, page, hashes)
        else:
            done = self._hash_of_file(hasher, vfns, page, hashes)
        return bytes(page) if done else b""

    def check(self) -> None:
        """Raise FaultError when the process has ended."""
        self._space.check()

    def end_pass(self) -> None:
        """Raise FaultError when the process ended, or unmapped or replaced the block meanwhile."""
        self._space.check_mapped()

    def close(self) -> None:
        """Close the files that were opened."""
        self._file = None


def _hash_in_groups(
    groups: Iterable[tuple[NDArray[np.bool_], Callable[[VfnArray, HashArray], int]]],
    vfns: VfnArray,
    hashes: HashArray,
) -> int:
    """Hash each group in its own way; return how many pages come before the first that failed."""
    readable = len(vfns)
    for is_in, hash_pages in groups:
        rows = np.flatnonzero(is_in)
        if not len(rows):
            continue
        found = np.empty(len(rows), dtype=np.uint64)
        done = hash_pages(vfns[rows], found)
        hashes[rows[:done]] = found[:done]
        if done < len(rows):
            readable = min(readable, int(rows[done]))
    return readable


def _check_rights(pid: int, page_size: int) -> None:
    """Raise SourceError when memory of a process may not be read, though its pagemap may."""
    check_proc()
    nothing = np.zeros(1, dtype=np.uint64)
    try:
        # Nothing is at address 0; the kernel tells first whether we may read the process.
        core.hash_remote(
            core.Hasher(core.Hash.READ), pid, 0, page_size, nothing,
            bytearray(page_size), np.zeros_like(nothing),
        )  # fmt: skip
    except OSError as error:
        raise process_error(error, pid) from error
