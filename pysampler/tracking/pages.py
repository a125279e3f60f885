# SPDX-License-Identifier: MIT
"""Facts about all pages, which the exact modes report instead of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler.core import Hash, Hasher
from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.sampling.passes import PassCount, Passes
from pysampler.sampling.plan import SamplePlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pysampler.memory.ramblock import RAMBlock


def plan_of_all_pages(blocks: Sequence[RAMBlock]) -> SamplePlan:
    """Return the plan in which each page is a sample once, in address order."""
    n_pages = [block.used_length // PAGE_SIZE for block in blocks]
    return SamplePlan(
        page_size=PAGE_SIZE,
        sample_pages=0,
        seed=0,
        stratified=False,
        n_total_pages=sum(n_pages),
        vfns=tuple(np.arange(n, dtype=np.uint64) for n in n_pages),
    )


def count_zero_pages(blocks: Sequence[RAMBlock], threads: int) -> PassCount:
    """Return how many pages hold only zeros, and how many could not be read without harm.

    Holes are zero pages and stay holes.
    """
    passes = Passes(blocks, plan_of_all_pages(blocks), Hasher(Hash.CONTENT), threads)
    try:
        return passes.baseline()
    finally:
        passes.close()


def block_details(blocks: Sequence[RAMBlock]) -> list[dict[str, Any]]:
    """Return the description of each block for the vector."""
    return [
        {"idstr": block.idstr, "used-length": block.used_length, "page-size": block.page_size}
        for block in blocks
    ]
