# SPDX-License-Identifier: MIT
"""The address space of a process: whether it is still there, and which of its pages are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn

from pysampler import core
from pysampler.errors import FaultError
from pysampler.source.maps import is_mapped, read_maps

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pysampler.core import StateArray, VfnArray
    from pysampler.ramblock import ProcessMemory, RAMBlock

_ENTRY = 8  # bytes of a pagemap entry


class AddressSpace:
    """Watches the part of an address space that a RAMBlock is in.

    An open /proc/PID/pagemap belongs to the address space, not to the pid: it ends with an
    exit or exec, and is not mistaken for that of a later process of the same pid.

    Raises:
        OSError: there is no such process, or it may not be read.
    """

    def __init__(self, block: RAMBlock, memory: ProcessMemory) -> None:
        self._block = block
        self._memory = memory
        self._pagemap = os.open(f"/proc/{memory.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def check(self) -> None:
        """Raise FaultError when the process has ended."""
        if len(os.pread(self._pagemap, _ENTRY, 0)) < _ENTRY:
            self.gone("the process has ended")

    def check_mapped(self) -> None:
        """Raise FaultError when the process has ended or unmapped the block."""
        self.check()
        if self._memory.address is None:
            return
        try:
            mappings = read_maps(self._memory.pid)
        except OSError:
            self.gone("the process has ended")
        if not is_mapped(mappings, self._memory.address, self._block.used_length):
            self.check()  # it may have ended between the two looks
            self.gone("the process has unmapped it, or a part of it")

    def states(
        self, page_size: int, vfns: VfnArray, order: NDArray[np.uint32], address: int
    ) -> StateArray:
        """Return which pages from ``address`` on are present, swapped out or neither."""
        return core.states_of_process(self._pagemap, address, page_size, vfns, order)

    def gone(self, why: str) -> NoReturn:
        """Raise FaultError."""
        raise FaultError(
            f"RAMBlock {self._block.idstr} of process {self._memory.pid}: {why}",
            idstr=self._block.idstr,
        )

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self._pagemap >= 0:
            os.close(self._pagemap)
            self._pagemap = -1
