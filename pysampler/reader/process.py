# SPDX-License-Identifier: MIT
"""Pages of another process's private memory, copied by process_vm_readv()."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from pysampler import core
from pysampler.errors import FaultError
from pysampler.rights import process_error
from pysampler.source.maps import is_mapped, read_maps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray
    from pysampler.ramblock import ProcessMemory, RAMBlock

_STAGING_PAGES = 32
_PAGE_MAP_ENTRY = 8


class PageStates:
    """States of anonymous pages by /proc/PID/pagemap, asked as rarely as can be.

    A page that was present stays so until memory is swapped out or given back. Both show in the
    process's resident size; as long as that does not fall, only pages that were absent are
    asked about again. This keeps a pass from costing two system calls a page.
    """

    def __init__(self, pid: int, address: int, page_size: int) -> None:
        self._address = address
        self._page_size = page_size
        self._resident = 0
        self._fell = True
        self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            os.close(self._pagemap)
            raise

    def begin_pass(self) -> None:
        """Look at the process's resident size."""
        resident = int(os.pread(self._statm, 256, 0).split()[1])
        self._fell = resident < self._resident
        self._resident = resident

    def is_alive(self) -> bool:
        """Return whether the address space that pagemap was opened for still exists."""
        host_page = os.sysconf("SC_PAGESIZE")
        offset = self._address // host_page * _PAGE_MAP_ENTRY
        return len(os.pread(self._pagemap, _PAGE_MAP_ENTRY, offset)) == _PAGE_MAP_ENTRY

    def states(self, vfns: VfnArray, known: StateArray | None) -> StateArray:
        """Return which pages can be read; see Reader."""
        if known is None or self._fell:
            return self._ask(vfns)
        absent = np.flatnonzero(known != core.PageState.PRESENT)
        if len(absent) == 0:
            return known
        states = known.copy()
        states[absent] = self._ask(vfns[absent])
        return states

    def _ask(self, vfns: VfnArray) -> StateArray:
        return core.states_of_process(self._pagemap, self._address, self._page_size, vfns)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (self._pagemap, self._statm):
            if fd >= 0:
                os.close(fd)
        self._pagemap = self._statm = -1


class ProcessReader:
    """Reads a RAMBlock in the address space of another process."""

    access = "process_vm_readv"

    def __init__(self, block: RAMBlock, memory: ProcessMemory, page_size: int) -> None:
        self._block = block
        self._memory = memory
        self._page_size = page_size
        try:
            self._states = PageStates(memory.pid, memory.address, page_size)
        except OSError as error:
            raise process_error(error, memory.pid) from error

    def begin_pass(self) -> None:
        """Look whether the process is there and how much of it is resident."""
        if not self._states.is_alive():
            self._gone("the process has ended")
        try:
            self._states.begin_pass()
        except (OSError, IndexError):
            self._gone("the process has ended")

    def states(
        self, vfns: VfnArray, order: NDArray[np.uint32], known: StateArray | None
    ) -> StateArray | None:
        """Return which pages can be read; see Reader."""
        del order
        states = self._states.states(vfns, known)
        if self._memory.shared:
            # What this process has not touched, another one may have written.
            states[states == core.PageState.HOLE] = core.PageState.SWAPPED
        return states

    def hash_pages(self, hasher: Hasher, vfns: VfnArray, hashes: HashArray) -> int:
        """Hash pages in order; see Reader."""
        return self._hash(hasher, vfns, bytearray(_STAGING_PAGES * self._page_size), hashes)

    def copy_page(self, vfn: int) -> bytes:
        """Return a page; see Reader."""
        page, vfns = bytearray(self._page_size), np.array([vfn], dtype=np.uint64)
        # What the hash is computed of is a copy.
        done = self._hash(core.Hasher(core.Hash.READ), vfns, page, np.zeros_like(vfns))
        return bytes(page) if done else b""

    def _hash(self, hasher: Hasher, vfns: VfnArray, staging: bytearray, hashes: HashArray) -> int:
        try:
            return core.hash_remote(
                hasher,
                self._memory.pid,
                self._memory.address,
                self._page_size,
                vfns,
                staging,
                hashes,
            )
        except ProcessLookupError:
            self._gone("the process has ended")
        except PermissionError:
            self._gone("the process may not be read any more")

    def end_pass(self) -> None:
        """Raise FaultError when the process ended or unmapped the block meanwhile."""
        # pagemap first: it knows the address space, a pid may have gone to another process.
        if not self._states.is_alive():
            self._gone("the process has ended")
        try:
            mappings = read_maps(self._memory.pid)
        except OSError:
            self._gone("the process has ended")
        if not is_mapped(mappings, self._memory.address, self._block.used_length):
            self._gone("the process has unmapped it, or a part of it")

    def _gone(self, why: str) -> NoReturn:
        raise FaultError(
            f"RAMBlock {self._block.idstr} of process {self._memory.pid}: {why}",
            idstr=self._block.idstr,
        )

    def close(self) -> None:
        """Close the descriptors."""
        self._states.close()
