# SPDX-License-Identifier: MIT
"""Timing many cases fairly: in shuffled order, again and again, with their spread."""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Half the interquartile range over the median; beyond it a figure is marked unstable.
UNSTABLE = 0.1


def spread_of(figures: Sequence[float]) -> float:
    """Return half the interquartile range over the median; 0 for a single figure."""
    if len(figures) < 2:
        return 0.0
    low, _, high = statistics.quantiles(figures, n=4, method="inclusive")
    return (high - low) / 2 / statistics.median(figures)


@dataclass
class Timing:
    """One case and what it took, round by round.

    Attributes:
        work: what is timed.
        pages: pages that one call of it reads.
        clock: what it is timed by: this thread's CPU time, which does not run while something
            else has the CPU; wall time for what runs in several threads.
        prepare: is called before each call of work, and is not timed.
        ns_per_page: one figure a round.
    """

    work: Callable[[], object]
    pages: int
    clock: Callable[[], int] = time.thread_time_ns
    prepare: Callable[[], object] = lambda: None
    ns_per_page: list[float] = field(default_factory=list)

    def once(self) -> float:
        """Do the work once and return what it took, ns per page; nothing is kept."""
        self.prepare()
        begin = self.clock()
        self.work()
        return (self.clock() - begin) / self.pages

    @property
    def median(self) -> float:
        """Return the median, ns per page."""
        return statistics.median(self.ns_per_page)

    @property
    def spread(self) -> float:
        """Return half the interquartile range over the median; 0 for a single round."""
        return spread_of(self.ns_per_page)

    @property
    def unstable(self) -> bool:
        """Return whether the figure should not be compared with others."""
        return self.spread > UNSTABLE


def run_rounds(timings: Sequence[Timing], rounds: int, seed: int = 0) -> Iterator[int]:
    """Time every case once a round, and yield the number of rounds that are done.

    Each round has an order of its own: what a case leaves in the caches, and what else
    the machine does for a while, then falls on all cases alike. A round before them, not timed,
    brings code and memory in.
    """
    order = list(timings)
    shuffle = random.Random(seed).shuffle  # noqa: S311 - an order, no secret
    for timing in order:
        timing.once()
    for done in range(rounds):
        shuffle(order)
        for timing in order:
            timing.ns_per_page.append(timing.once())
        yield done + 1
