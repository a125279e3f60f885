# SPDX-License-Identifier: MIT
"""Pages of another process's private memory, copied by process_vm_readv()."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.reader.address_space import AddressSpace
from pysampler.rights import process_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray
    from pysampler.ramblock import ProcessMemory, RAMBlock

_STAGING_PAGES = 32


class ProcessReader:
    """Reads a RAMBlock in the address space of another process.

    To read a page that is not there makes it come: a zero page, or out of swap. So pagemap
    is asked before, in every pass, for a page may be given back or swapped out at any time.
    """

    access = "process_vm_readv"

    def __init__(
        self, block: RAMBlock, memory: ProcessMemory, address: int, page_size: int
    ) -> None:
        self._memory = memory
        self._address = address
        self._page_size = page_size
        try:
            self._space = AddressSpace(block, memory)
        except OSError as error:
            raise process_error(error, memory.pid) from error
        try:
            # Nothing is at address 0; the kernel tells first whether we may read the process.
            nothing = np.zeros(1, dtype=np.uint64)
            core.hash_remote(
                core.Hasher(core.Hash.READ), memory.pid, 0, page_size, nothing,
                bytearray(page_size), np.zeros_like(nothing),
            )  # fmt: skip
        except OSError as error:
            self._space.close()
            raise process_error(error, memory.pid) from error

    def begin_pass(self) -> None:
        """Look whether the process is there."""
        self._space.check()

    def states(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray:
        """Return which pages can be read; see Reader."""
        states = self._space.states(self._page_size, vfns, order, self._address)
        if not self._memory.anonymous:
            # What this process has not touched has the content of its file, or of another
            # process.
            states[states == core.PageState.HOLE] = core.PageState.FILE
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
        pid = self._memory.pid
        try:
            return core.hash_remote(
                hasher, pid, self._address, self._page_size, vfns, staging, hashes
            )
        except ProcessLookupError:
            self._space.gone("the process has ended")
        except PermissionError:
            self._space.gone("the process may not be read any more")

    def end_pass(self) -> None:
        """Raise FaultError when the process ended or unmapped the block meanwhile."""
        self._space.check_mapped()

    def close(self) -> None:
        """Close the descriptors."""
        self._space.close()
