# SPDX-License-Identifier: MIT
"""Pages of a Python buffer of this process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pysampler import core
from pysampler.errors import SourceError
from pysampler.memory.ramblock import ProcessMemory
from pysampler.memory.reader.address_space import AddressSpace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray
    from pysampler.memory.ramblock import BufferMemory, RAMBlock
    from pysampler.memory.reader.opened import Opened


class BufferReader:
    """Reads memory that this process has mapped itself.

    Untouched pages of anonymous memory stay untouched. Other memory is read as it is: this
    process may fault in its own mappings.
    """

    access = "buffer"

    def __init__(
        self, block: RAMBlock, memory: BufferMemory, page_size: int, opened: Opened
    ) -> None:
        if block.used_length > len(memory.buffer):
            raise SourceError(f"RAMBlock {block} is longer than its buffer")
        self._buffer = memory.buffer
        self._page_size = page_size
        self._address = core.address_of(memory.buffer)
        self._space: AddressSpace | None = None
        if memory.anonymous:
            pid = os.getpid()
            process = opened.process(pid)
            self._space = AddressSpace(block, ProcessMemory(pid, self._address), process)

    def begin_pass(self) -> None:
        """Forget observations of the last pass; an exported buffer cannot go away."""
        if self._space is not None:
            self._space.begin_pass()

    def states(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray | None:
        """Return which pages can be read; see Reader."""
        if self._space is None:
            return None
        return self._space.states(self._page_size, vfns, order, self._address)

    def hash_pages(self, hasher: Hasher, vfns: VfnArray, hashes: HashArray) -> int:
        """Hash pages in order; see Reader."""
        return core.hash_mapped(hasher, self._buffer, self._page_size, vfns, hashes)

    def copy_page(self, vfn: int) -> bytes:
        """Return a page; see Reader."""
        begin = vfn * self._page_size
        return bytes(self._buffer[begin : begin + self._page_size])

    def check(self) -> None:
        """Do nothing: an exported buffer cannot go away."""

    end_pass = check

    def close(self) -> None:
        """Close the files that were opened for the buffer."""
        self._space = None
