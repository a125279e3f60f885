# SPDX-License-Identifier: MIT
"""The place of a RAMBlock in a process's address space: is it still there, and are its pages?"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from pysampler import core
from pysampler.core import PageState
from pysampler.errors import FaultError
from pysampler.host.maps import is_mapped, read_maps
from pysampler.memory.reader.process_view import ProcessView

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.core import StateArray, VfnArray
    from pysampler.host.maps import Mapping
    from pysampler.memory.ramblock import ProcessMemory, RAMBlock


class AddressSpace:
    """Watches the part of an address space that a RAMBlock is in.

    Args:
        block: the RAMBlock.
        memory: where it is.
        process: its process as other readers see it; None to look at it alone.

    Raises:
        OSError: there is no such process, or it may not be read.
    """

    def __init__(
        self, block: RAMBlock, memory: ProcessMemory, process: ProcessView | None = None
    ) -> None:
        self._block = block
        self._memory = memory
        self._is_alone = process is None
        self.process = ProcessView(memory.pid) if process is None else process
        self._shared: NDArray[np.bool_] | None = None  # by vfn, once there is one
        self._lock = threading.Lock()
        self._identity = self._identity_of(self._mappings())
        if self._is_alone:
            self.process.begin_pass()

    def begin_pass(self) -> None:
        """Forget observations of the last pass; raise FaultError when the process has ended."""
        self.process.begin_pass()
        self.check()

    def check(self) -> None:
        """Raise FaultError when the process has ended."""
        if self.process.has_ended():
            self.gone("the process has ended")

    def check_mapped(self) -> None:
        """Raise FaultError when the process has ended, or unmapped or replaced the block."""
        self.check()
        if self._memory.address is None:
            return
        spanned = self._mappings()
        if not is_mapped(spanned, self._memory.address, self._block.used_length):
            self.check()  # it may have ended between the two looks
            self.gone("the process has unmapped it, or a part of it")
        if self._identity_of(spanned) != self._identity:
            self.gone("it was replaced by another mapping at the same address")

    def _mappings(self) -> list[Mapping]:
        """Return the mappings that the block is in."""
        if self._memory.address is None:
            return []
        mappings = self.process.mappings
        if mappings is None:
            try:
                mappings = read_maps(self._memory.pid)
            except (FileNotFoundError, ProcessLookupError):
                self.gone("the process has ended")
            except PermissionError:
                self.gone("the process may not be read any more")
            self.process.mappings = mappings
        begin, end = self._memory.address, self._memory.address + self._block.used_length
        first = bisect_left(mappings, begin + 1, key=lambda mapping: mapping.end)
        last = bisect_left(mappings, end, lo=first, key=lambda mapping: mapping.start)
        return mappings[first:last]

    @staticmethod
    def _identity_of(mappings: list[Mapping]) -> frozenset[tuple[object, ...]]:
        """Return the properties of mappings that splitting, joining and protecting keep."""
        return frozenset(
            (m.shared, m.inode, m.offset - m.start if m.inode != (0, 0) else 0) for m in mappings
        )

    def states(
        self, page_size: int, vfns: VfnArray, order: NDArray[np.uint32], address: int
    ) -> StateArray:
        """Return the states of pages from ``address`` on.

        A page that is neither present nor swapped out is a hole, or awaited from userfaultfd.
        """
        states = core.states_of_process(self.process.pagemap.fd, address, page_size, vfns, order)
        self._keep_shared(vfns, states == PageState.SHARED, page_size)
        states[states == PageState.SHARED] = PageState.PRESENT
        holes = states == PageState.HOLE
        if holes.any():
            for mapping in self.process.awaited():
                at = vfns * np.uint64(page_size) + np.uint64(address)
                inside = (at >= np.uint64(mapping.start)) & (at < np.uint64(mapping.end))
                states[holes & inside] = PageState.USERFAULTFD
        return states

    def _keep_shared(self, vfns: VfnArray, shared: NDArray[np.bool_], page_size: int) -> None:
        with self._lock:
            if self._shared is None:
                if not shared.any():
                    return
                self._shared = np.zeros(self._block.used_length // page_size + 1, dtype=np.bool_)
            self._shared[vfns] = shared

    def shared(self, vfns: VfnArray) -> NDArray[np.bool_]:
        """Return which pages were shared, by KSM or a fork, when `states` was asked last."""
        return np.zeros(len(vfns), dtype=np.bool_) if self._shared is None else self._shared[vfns]

    def gone(self, why: str) -> NoReturn:
        """Raise FaultError."""
        raise FaultError(
            f"RAMBlock {self._block.idstr} of process {self._memory.pid}: {why}",
            idstr=self._block.idstr,
        )

    def close(self) -> None:
        """Close what was opened for this block alone; a second call does nothing."""
        if self._is_alone:
            self.process.close()
