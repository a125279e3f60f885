# SPDX-License-Identifier: MIT
"""dirty-bitmap by soft-dirty bits: any process, where the kernel has CONFIG_MEM_SOFT_DIRTY.

Clearing the bits protects each page of the process, not of the RAMBlocks alone. It also takes the
bits away from other programs that use them (CRIU).
"""

from __future__ import annotations

import mmap
import os
import subprocess
import weakref
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler import core
from pysampler.core import HOST_PAGE_SIZE, Range
from pysampler.errors import FaultError, MissingFeatureError
from pysampler.host.child import module_command
from pysampler.host.rights import process_error
from pysampler.sampling.passes import PassCount
from pysampler.tracking.memory import PAGES_PER_BIT, TrackedMemory
from pysampler.tracking.pages import block_details, count_zero_pages
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pysampler.memory.ramblock import RAMBlock

_CLEAR_SOFT_DIRTY = b"4"


@cache
def has_soft_dirty() -> bool:
    """Return whether the kernel notes writes in soft-dirty bits.

    A child writes a page and looks: clear_refs accepts the request to clear them even where the
    bits do not exist.
    """
    try:
        child = subprocess.run(
            module_command("pysampler.tracking.soft_dirty_child"), capture_output=True, check=False
        )
    except OSError:  # an interpreter that this user may not start
        return False
    return child.stdout.strip() == b"True"


def cycle_works(proc: str = "/proc/self") -> bool:
    """Return whether a page of this process gets, loses and regains its soft-dirty bit.

    Clears the bits of the whole process.
    """
    memory = mmap.mmap(-1, HOST_PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    page = Range(core.address_of(memory), HOST_PAGE_SIZE, 0)
    pagemap = os.open(f"{proc}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        memory[0] = 1
        written = _count(pagemap, page)
        _clear(f"{proc}/clear_refs")
        cleared = _count(pagemap, page)
        memory[0] = 2
        return (written, cleared, _count(pagemap, page)) == (1, 0, 1)
    except OSError:
        return False
    finally:
        os.close(pagemap)


def _count(pagemap: int, memory: Range) -> int:
    return core.soft_dirty_pages(pagemap, memory, np.zeros(1, dtype=np.uint8))


def _clear(clear_refs: str) -> None:
    with open(clear_refs, "wb", buffering=0) as file:
        file.write(_CLEAR_SOFT_DIRTY)


class SoftDirty:
    """Observer by soft-dirty bits; see pysampler.sampling.sampler.Observer.

    Args:
        blocks: what to track.
        pid: the process whose writes count; None for this one.
        threads: threads that look for zero pages.
        proc: the folder with the process's pagemap and clear_refs; for tests.

    Raises:
        MissingFeatureError: the kernel has no soft-dirty bits.
        SourceError: the memory cannot be tracked.
    """

    mode = Mode.DIRTY_BITMAP
    sample_pages = 0

    def __init__(
        self,
        blocks: Sequence[RAMBlock],
        *,
        pid: int | None = None,
        threads: int = 1,
        proc: str | None = None,
    ) -> None:
        pid = os.getpid() if pid is None else pid
        if proc is None and not has_soft_dirty():
            raise MissingFeatureError("soft-dirty bits need a kernel with CONFIG_MEM_SOFT_DIRTY=y")
        proc = f"/proc/{pid}" if proc is None else proc
        self._threads = threads
        self._zero = PassCount(0, 0)
        self._n_written = 0
        self.memory = TrackedMemory(blocks, pid)
        self.n_total_pages = self.n_sampled_pages = self.memory.n_total_pages
        self._clear_refs = f"{proc}/clear_refs"
        try:
            self._pagemap = os.open(f"{proc}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise process_error(error, pid) from error
        self.close = weakref.finalize(self, os.close, self._pagemap)

    def warm_up(self) -> None:
        """Count zero pages."""
        self._zero = count_zero_pages(self.memory.blocks, self._threads)

    def baseline(self) -> PassCount:
        """Clear all bits of the process."""
        with self._watching():
            _clear(self._clear_refs)
        return self._zero

    def compare(self) -> PassCount:
        """Count the pages written since the baseline."""
        with self._watching():
            for memory in self.memory.ranges:
                self._n_written += core.soft_dirty_pages(self._pagemap, memory, self.memory.bitmap)
        self.memory.check()
        return PassCount(self._n_written * PAGES_PER_BIT, 0)

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return nothing: the writer of a page is not known."""
        return ()

    def details(self) -> dict[str, Any]:
        """Return how it was tracked."""
        return {"tracking": "soft-dirty", "blocks": block_details(self.memory.blocks)}

    @contextmanager
    def _watching(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FaultError(
                f"soft-dirty bits cannot be had any more: {error.strerror}",
                idstr=self.memory.blocks[0].idstr,
            ) from error
