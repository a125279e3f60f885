# SPDX-License-Identifier: MIT
"""dirty-bitmap: pages written since the baseline, exactly, by asynchronous write-protection.

The first write of each page costs its writer one fault, which the kernel resolves alone. Later
writes cost nothing, because pages are never protected again during a measurement. So the bitmap
holds all pages written since the baseline.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from pysampler import core
from pysampler.core import UffdKind
from pysampler.sampling.passes import PassCount
from pysampler.tracking.memory import PAGES_PER_BIT, TrackedMemory
from pysampler.tracking.pages import count_zero_pages
from pysampler.tracking.userfaultfd import WriteProtection
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pysampler.memory.ramblock import RAMBlock


class DirtyBitmap:
    """Observer by userfaultfd and PAGEMAP_SCAN; see pysampler.sampling.sampler.Observer.

    Args:
        blocks: what to track.
        pid: the process whose writes count; None for this one.
        threads: threads that look for zero pages.
        reason: why the memory is tracked so, where there would be a better way; ``details`` has it.

    Raises:
        MissingFeatureError: the kernel or the process does not offer it.
        SourceError: the memory cannot be tracked, or is tracked already.
    """

    mode = Mode.DIRTY_BITMAP
    sample_pages = 0

    def __init__(
        self,
        blocks: Sequence[RAMBlock],
        *,
        pid: int | None = None,
        threads: int = 1,
        reason: str = "",
    ) -> None:
        self._reason = reason
        self._threads = threads
        self.memory = TrackedMemory(blocks, os.getpid() if pid is None else pid)
        self.n_total_pages = self.n_sampled_pages = self.memory.n_total_pages
        self._n_written = 0
        self._zero = PassCount(0, 0)
        self._protection = WriteProtection(
            self.memory, UffdKind.ASYNC, os.getpid() if pid is None else pid
        )
        # Should nobody call close(): the memory is not to stay registered.
        self.close = weakref.finalize(self, self._protection.close)

    def warm_up(self) -> None:
        """Count zero pages and protect everything."""
        self._zero = count_zero_pages(self.memory.blocks, self._threads)
        self._protection.protect()

    def baseline(self) -> PassCount:
        """Forget the pages that were written during `warm_up`."""
        for memory in self.memory.ranges:
            with self._protection.watching(memory):
                core.protect_written(self._protection.pagemap, memory)
        return self._zero

    def compare(self) -> PassCount:
        """Count the pages written since the baseline."""
        for memory in self.memory.ranges:
            with self._protection.watching(memory):
                self._n_written += core.written_pages(
                    self._protection.pagemap, memory, self.memory.bitmap
                )
        self.memory.check()
        self._protection.check_cleanup()
        return PassCount(self._n_written * PAGES_PER_BIT, 0)

    def details(self) -> dict[str, Any]:
        """Return how it was tracked."""
        return {
            "tracking": "userfaultfd-wp-async",
            **({"tracking-reason": self._reason} if self._reason else {}),
            "blocks": self.memory.block_details(),
        }

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return nothing: the writer of a page is not known."""
        return ()
