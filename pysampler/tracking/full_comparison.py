# SPDX-License-Identifier: MIT
"""Full comparison: compares the content of all pages, where writes cannot be tracked."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from pysampler.core import Hash, Hasher
from pysampler.errors import SourceError
from pysampler.qemu.dirty_rate import MIN_USED_LENGTH, PAGE_SIZE
from pysampler.sampling.passes import PassCount, Passes
from pysampler.tracking.pages import block_details, plan_of_all_pages
from pysampler.tracking.room import BYTES_PER_PAGE_COMPARED, check_room
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pysampler.memory.ramblock import RAMBlock


class FullComparison:
    """Observer that hashes every page (XXH3, 64 bits); see pysampler.sampling.sampler.Observer.

    Like page sampling it misses a write of the same content, and a change that was changed back.
    Each pass reads all memory.

    Args:
        blocks: what to compare.
        threads: reading threads.
        reason: why writes could not be tracked; goes into the vector.

    Raises:
        SourceError: there is nothing to compare, or a block cannot be read.
    """

    mode = Mode.DIRTY_BITMAP
    sample_pages = 0

    def __init__(self, blocks: Sequence[RAMBlock], *, threads: int = 1, reason: str = "") -> None:
        self._reason = reason
        self._blocks = [block for block in blocks if block.used_length >= MIN_USED_LENGTH]
        if not self._blocks:
            raise SourceError("there is no RAMBlock of at least 128 KiB to compare")
        n_pages = sum(block.used_length // PAGE_SIZE for block in self._blocks)
        check_room(n_pages * BYTES_PER_PAGE_COMPARED, n_pages)
        plan = plan_of_all_pages(self._blocks)
        self.n_total_pages = self.n_sampled_pages = plan.n_total_pages
        self._passes = Passes(self._blocks, plan, Hasher(Hash.XXH3), threads)
        self.close = weakref.finalize(self, self._passes.close)

    def warm_up(self) -> None:
        """Touch every page once, so that the baseline takes no longer than a comparison."""
        self._passes.warm_up()

    def baseline(self) -> PassCount:
        """Hash every page; count zero pages."""
        return self._passes.baseline()

    def compare(self) -> PassCount:
        """Hash every page again; count those that differ from the baseline."""
        return self._passes.compare()

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return nothing: the writer of a page is not known."""
        return ()

    def details(self) -> dict[str, Any]:
        """Return the tracking's name, and the reason for it."""
        return {
            "tracking": "full-comparison",
            "tracking-reason": self._reason,
            "blocks": block_details(self._blocks),
        }
