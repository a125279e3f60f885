# SPDX-License-Identifier: MIT
"""Pages of a Python buffer of this process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pysampler import core
from pysampler.reader.process import PageStates

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray
    from pysampler.ramblock import BufferMemory


class BufferReader:
    """Reads memory that this process has mapped itself."""

    access = "buffer"

    def __init__(self, memory: BufferMemory, page_size: int) -> None:
        self._buffer = memory.buffer
        self._page_size = page_size
        # Whole anonymous pages may be untouched, and must stay so. Memory between other
        # objects of the heap is not page-aligned and in use anyway.
        self._states: PageStates | None = None
        address = core.address_of(memory.buffer)
        if address % os.sysconf("SC_PAGESIZE") == 0:
            self._states = PageStates(os.getpid(), address, page_size)

    def begin_pass(self) -> None:
        """Look at this process's resident size."""
        if self._states is not None:
            self._states.begin_pass()

    def states(
        self, vfns: VfnArray, order: NDArray[np.uint32], known: StateArray | None
    ) -> StateArray | None:
        """Return which pages can be read; see Reader."""
        del order
        return self._states.states(vfns, known) if self._states is not None else None

    def hash_pages(self, hasher: Hasher, vfns: VfnArray, hashes: HashArray) -> int:
        """Hash pages in order; see Reader."""
        return core.hash_mapped(hasher, self._buffer, self._page_size, vfns, hashes)

    def copy_page(self, vfn: int) -> bytes:
        """Return a page; see Reader."""
        begin = vfn * self._page_size
        return bytes(memoryview(self._buffer).cast("B")[begin : begin + self._page_size])

    def end_pass(self) -> None:
        """Do nothing: an exported buffer cannot go away."""

    def close(self) -> None:
        """Close what was opened beside the buffer."""
        if self._states is not None:
            self._states.close()
            self._states = None
