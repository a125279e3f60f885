# SPDX-License-Identifier: MIT
"""The vectors of a guest that is recorded: a sample, and a subset of it, in the same passes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pysampler import Mode
from pysampler.core import Hasher
from pysampler.sampling.passes import PassCount, Passes
from pysampler.sampling.plan import PROFILES, SamplePlan, draw_plan
from pysampler.sampling.sampler import Sampler

if TYPE_CHECKING:
    from migration_guest import GuestConfig, QemuGuest

    from pysampler.memory.ramblock import RAMBlock

SAMPLE_PAGES = 8192
SUBSET_PAGES = 512
CALC_TIME_MS = 15_000


class NestedSampling:
    """Observer of a sample and, in the same passes, of a random subset of it.

    Attributes:
        subset: zero pages of the subset, then its dirty pages in each compare pass.
        n_subset: its samples.
    """

    mode = Mode.PAGE_SAMPLING
    sample_pages = SAMPLE_PAGES

    def __init__(self, block: RAMBlock, seed: int) -> None:
        profile = PROFILES["qemu"]
        plan = draw_plan([block.used_length], profile=profile, sample_pages=SAMPLE_PAGES, seed=seed)
        self.n_total_pages = plan.n_total_pages
        self.n_sampled_pages = plan.n_sampled_pages
        self.n_subset = plan.n_sampled_pages * SUBSET_PAGES // SAMPLE_PAGES
        self.subset: list[int] = []
        # The draws are independent, so that the first ones are a random subset.
        self._parts = [
            _passes(block, plan, slice(self.n_subset)),
            _passes(block, plan, slice(self.n_subset, None)),
        ]

    def warm_up(self) -> None:
        """Touch every sample."""
        for part in self._parts:
            part.warm_up()

    def baseline(self) -> PassCount:
        """Count zero pages."""
        return self._count([part.baseline() for part in self._parts])

    def compare(self) -> PassCount:
        """Count dirty pages."""
        return self._count([part.compare() for part in self._parts])

    def _count(self, counts: list[PassCount]) -> PassCount:
        self.subset.append(counts[0].pages)
        return PassCount(sum(c.pages for c in counts), sum(c.unreadable for c in counts))

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return nothing: who wrote a page does not show in it."""
        return ()

    def details(self) -> dict[str, Any]:
        """Return nothing that the records have."""
        return {}

    def close(self) -> None:
        """Close the readers."""
        for part in self._parts:
            part.close()


def _passes(block: RAMBlock, plan: SamplePlan, which: slice) -> Passes:
    return Passes(
        [block], replace(plan, vfns=(plan.vfns[0][which],)), Hasher(PROFILES["qemu"].hash), 1
    )


def profile(guest: QemuGuest, workload: GuestConfig, seed: int) -> dict[str, Any]:
    """Return the members of a record that all migrations of a workload share."""
    sampling = NestedSampling(guest.block, seed)
    before = guest.counts()
    with Sampler(sampling, CALC_TIME_MS) as sampler:
        *_, measured = sampler
    wps = guest.pace(before, guest.counts())
    whole = replace(measured, details={})
    subset = replace(
        whole,
        sample_pages=SUBSET_PAGES,
        n_sampled_pages=sampling.n_subset,
        n_zero_pages=sampling.subset[0],
        n_dirty_pages=tuple(sampling.subset[1:]),
    )
    return {
        "vector": whole.to_dict(),
        "vector-512": subset.to_dict(),
        "wps-profile": round(wps),
        "theory-dirty-pages": [round(workload.dirty_pages(t / 1e3, wps)) for t in whole.periods],
    }
