# SPDX-License-Identifier: MIT
"""The emulated guest's workloads, each with its theory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pysampler.sampling.plan import RUN
from pysampler.validation import theory
from pysampler.validation.theory import Distinct, Pages, Sweep

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class WorkloadTheory:
    """A workload of ``pysampler guest`` with its theory.

    Attributes:
        name: as the guest calls it.
        writer: number of pages -> the writer.
        together: pages that are equally likely lie together; else they are scattered.
    """

    name: str
    writer: Callable[[int], Pages | Sweep]
    together: bool

    def distinct(self, n_pages: int, writes: float) -> Distinct:
        """Return the distinct pages after a counted number of writes."""
        return self.writer(n_pages).after_writes(writes)

    def variance(
        self,
        n_pages: int,
        writes: float,
        n_sampled: int,
        *,
        strata: bool,
        pass_writes: tuple[int, ...] = (),
    ) -> float:
        """Return the variance of the estimate from a sample of the pages.

        Args:
            n_pages: pages of the guest, all of them written.
            writes: counted writes.
            n_sampled: samples; all pages for exact tracking.
            strata: one page was drawn of each stratum; else with replacement.
            pass_writes: counted writes during each pass, which a sweep in strata is sensitive to.
        """
        writer = self.writer(n_pages)
        distinct = writer.after_writes(writes)
        if n_sampled >= n_pages:
            return distinct.variance
        if strata and isinstance(writer, Sweep):
            # Only the strata at both ends of what was swept are in doubt; a uniform place
            # in a stratum leaves a sixth of a squared stratum each.
            stratum = n_pages / n_sampled
            ends = stratum**2 / 3 + distinct.variance
            # What is swept while a pass runs is dirty or not by when it was read, and that is
            # one moment for each run of strata: below a run the moment is uniform in what
            # was swept (a twelfth), above it each run is a draw of its own (a sixth).
            run = RUN * stratum
            return ends + sum(min(swept**2 / 12, swept * run / 6) for swept in pass_writes)
        if strata and self.together:
            return theory.strata_variance(writer, writes, n_sampled)  # type: ignore[arg-type]  # no Sweep here
        return theory.sampled_variance(distinct, n_pages, n_sampled, replacement=not strata)


WORKLOADS = {
    workload.name: workload
    for workload in (
        WorkloadTheory("uniform", theory.uniform, together=True),
        WorkloadTheory("hotcold", theory.hot_cold, together=True),
        WorkloadTheory("zipf", theory.zipf, together=False),
        WorkloadTheory("sweep", Sweep, together=True),
    )
}
