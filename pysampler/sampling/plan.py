# SPDX-License-Identifier: MIT
"""Which pages are sampled: profiles, and plans drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pysampler.core import Hash
from pysampler.errors import UsageError
from pysampler.qemu.dirty_rate import (
    MIN_USED_LENGTH,
    PAGE_SIZE,
    SAMPLE_PAGES_DEFAULT,
    SAMPLE_PAGES_MAX,
    SAMPLE_PAGES_MIN,
)
from pysampler.units import GIB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

RUN = 16  # stratified samples that are read in address order; longer runs gain nothing

SAMPLES_MAX = 1 << 25  # 2 TiB at 16384 per GiB; a sample costs us some 60 bytes


@dataclass(frozen=True)
class Profile:
    """A named way to sample.

    Attributes:
        name: as on the command line.
        hash: page hash.
        stratified: False: uniform with replacement, the last page never, as QEMU draws. True: one
            page out of each of n equal strata of the address range.
        sample_pages: default samples per GiB.
        summary: one line for people.
    """

    name: str
    hash: Hash
    stratified: bool
    sample_pages: int
    summary: str


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("qemu", Hash.XXH64, False, SAMPLE_PAGES_DEFAULT, "as QEMU 8.1 and newer: XXH64"),
        Profile("qemu-7", Hash.CRC32, False, SAMPLE_PAGES_DEFAULT, "as QEMU 8.0 and older: CRC-32"),
        Profile("fast", Hash.XXH3, True, 1536, "XXH3, stratified: more samples in the same time"),
    )
}


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """The pages to sample.

    Attributes:
        page_size: bytes of a page.
        sample_pages: samples per GiB.
        stratified: as of the profile.
        seed: repeats the draw.
        n_total_pages: pages of all blocks.
        vfns: for each block the sampled page numbers, uint64, in the order of every pass.
    """

    page_size: int
    sample_pages: int
    stratified: bool
    seed: int
    n_total_pages: int
    vfns: tuple[NDArray[np.uint64], ...]

    @property
    def n_sampled_pages(self) -> int:
        """Samples of all blocks."""
        return sum(len(vfns) for vfns in self.vfns)


def draw_plan(
    used_lengths: Sequence[int],
    *,
    profile: Profile,
    sample_pages: int,
    seed: int,
    page_size: int = PAGE_SIZE,
) -> SamplePlan:
    """Draw the pages to sample from blocks of the given lengths.

    Args:
        used_lengths: bytes of each block, at least 128 KiB.
        profile: how to draw.
        sample_pages: samples per GiB, 128 to 16384; a block gets the floor of its share.
        seed: same seed and lengths, same plan.
        page_size: bytes of a page.

    Raises:
        UsageError: ``sample_pages`` is out of range, or all samples are too many.
    """
    if not SAMPLE_PAGES_MIN <= sample_pages <= SAMPLE_PAGES_MAX:
        raise UsageError(
            f"sample-pages must be between {SAMPLE_PAGES_MIN} and {SAMPLE_PAGES_MAX}"
            f" (got {sample_pages})"
        )
    n_samples = sum(length * sample_pages // GIB for length in used_lengths)
    if n_samples > SAMPLES_MAX:
        raise UsageError(
            f"{n_samples} samples are more than {SAMPLES_MAX}: use fewer sample-pages or blocks"
        )
    draw = _draw_stratified if profile.stratified else _draw_with_replacement
    streams = np.random.SeedSequence(seed).spawn(len(used_lengths))
    vfns = []
    for used_length, stream in zip(used_lengths, streams, strict=True):
        if used_length < MIN_USED_LENGTH:
            raise ValueError(f"a block of {used_length} bytes is too short to sample")
        n_samples = used_length * sample_pages // GIB
        vfns.append(draw(np.random.default_rng(stream), used_length // page_size, n_samples))
    return SamplePlan(
        page_size=page_size,
        sample_pages=sample_pages,
        stratified=profile.stratified,
        seed=seed,
        n_total_pages=sum(length // page_size for length in used_lengths),
        vfns=tuple(vfns),
    )


def _draw_with_replacement(
    rng: np.random.Generator, n_pages: int, n_samples: int
) -> NDArray[np.uint64]:
    # QEMU asks g_rand_int_range() for [0, n_pages - 1), end exclusive: never the last page.
    return rng.integers(0, n_pages - 1, n_samples, dtype=np.uint64)


def _draw_stratified(rng: np.random.Generator, n_pages: int, n_samples: int) -> NDArray[np.uint64]:
    edges = (
        np.arange(n_samples + 1, dtype=np.uint64)
        * np.uint64(n_pages)
        // np.uint64(max(n_samples, 1))
    )
    vfns = rng.integers(edges[:-1], edges[1:], dtype=np.uint64)
    if n_samples == 0:
        return vfns
    # In address order, the time at which a page is read would go with its address; in random
    # order, each page costs a page-table walk of its own. So short runs of neighbours, in random
    # order, beginning anywhere.
    begin = int(rng.integers(n_samples))
    runs = np.arange(n_samples) // RUN
    in_order = np.argsort(rng.permutation(runs[-1] + 1)[runs], kind="stable")
    return np.roll(vfns, begin)[in_order]
