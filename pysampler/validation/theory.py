# SPDX-License-Identifier: MIT
"""The expected result of sampling: distinct pages that known writers dirty, in closed form.

A writer that picks pages independently is a `Pages`: groups of pages that are equally likely.
``after_writes(w)`` is for a counted number of writes, ``after(seconds, rate)`` for a Poisson stream
of writes, the form in which D(t) of 90 million pages is as cheap as that of 90. `Sweep` writes in
address order, `Bursts` is any writer that pauses.

All give a `Distinct`: the expected number of distinct pages and its variance over the writer's
own randomness. `sampled_variance` adds that of sampling.

Sources: occupancy (balls in urns): W. Feller, "An Introduction to Probability Theory and Its
Applications" I, 3rd ed., sections II.5 and IV.2; N. L. Johnson and S. Kotz, "Urn Models and
Their Application" (1977). From Poisson writes to a counted number of them: A. D. Barbour,
L. Holst and S. Janson, "Poisson Approximation" (1992), chapter 6. Ranks: G. K. Zipf, "Human
Behavior and the Principle of Least Effort" (1949).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from pysampler.errors import UsageError
from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.units import MIB

if TYPE_CHECKING:
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]


class Distinct(NamedTuple):
    """Distinct pages written.

    Attributes:
        mean: expected pages.
        variance: of the writer's own randomness, pages squared.
    """

    mean: float
    variance: float


class Writer(Protocol):
    """Anything whose distinct pages after a time are known."""

    @property
    def n_pages(self) -> int:
        """Pages that the writer may write."""

    def after(self, seconds: float, rate: float) -> Distinct:
        """Return the distinct pages ``seconds`` after any moment, at ``rate`` writes a second."""


@dataclass(frozen=True, eq=False)
class Pages:
    """A writer that picks each page independently of those before it.

    Attributes:
        sizes: pages in each group, float64.
        chances: the chance that one write goes to one given page of the group, float64;
            ``sizes @ chances`` is 1.
    """

    sizes: FloatArray
    chances: FloatArray

    @property
    def n_pages(self) -> int:
        """Pages that the writer may write."""
        return round(float(self.sizes.sum()))

    def after(self, seconds: float, rate: float) -> Distinct:
        """Return the distinct pages after a Poisson number of writes.

        Page i is untouched with chance exp(-p_i rate t), independently of all others, so the
        variance is that of a sum of independent indicators. Exact.
        """
        untouched = np.exp(-self.chances * (rate * seconds))
        touched = -np.expm1(-self.chances * (rate * seconds))
        return Distinct(float(self.sizes @ touched), float(self.sizes @ (untouched * touched)))

    def after_writes(self, writes: float) -> Distinct:
        """Return the distinct pages after exactly ``writes`` writes.

        The mean is exact. The variance is too when all pages are equally likely (one group);
        else it is the Poisson one less (sum p_i w exp(-p_i w))^2 / w, whose error falls as 1/w.
        """
        if writes <= 0:
            return Distinct(0.0, 0.0)
        # A group of one page that gets every write: log1p(-1) is -inf, and that is right.
        with np.errstate(divide="ignore"):
            log_miss = writes * np.log1p(-self.chances)
        mean = float(self.sizes @ -np.expm1(log_miss))
        if len(self.sizes) == 1:
            return Distinct(mean, _occupancy_variance(self.n_pages, writes))
        poisson = self.after(writes, 1.0)
        load = self.chances * writes
        shared = float(self.sizes @ (load * np.exp(-load)))
        return Distinct(mean, max(0.0, poisson.variance - shared * shared / writes))


def _occupancy_variance(n: int, writes: float) -> float:
    """Return n(n-1)(1-2/n)^w + n(1-1/n)^w - n^2 (1-1/n)^2w without its cancellation."""
    if n <= 2:
        return 0.0 if n == 1 else 2.0 * 0.5**writes - (2 * 0.5**writes) ** 2
    one, two = writes * math.log1p(-1 / n), writes * math.log1p(-2 / n)
    return max(
        0.0,
        n * (math.expm1(one) - math.expm1(two))
        + n * n * math.exp(2 * one) * math.expm1(writes * math.log1p(-1 / (n - 1) ** 2)),
    )


def uniform(n_pages: int) -> Pages:
    """Return the writer to whom all pages are equally likely."""
    return Pages(np.array([float(n_pages)]), np.array([1 / n_pages]))


def hot_cold(n_pages: int, hot_fraction: float = 0.1, hot_share: float = 0.9) -> Pages:
    """Return the writer who sends ``hot_share`` of the writes to ``hot_fraction`` of the pages.

    The hot pages are a whole number, the nearest to ``hot_fraction`` of all, at least one.
    """
    if not (0 < hot_fraction < 1 and 0 <= hot_share <= 1 and n_pages >= 2):
        raise UsageError("hot-fraction and hot-share must be between 0 and 1, of 2 pages or more")
    hot = min(max(1, round(n_pages * hot_fraction)), n_pages - 1)
    sizes = np.array([float(hot), float(n_pages - hot)])
    return Pages(sizes, np.array([hot_share, 1 - hot_share]) / sizes)


def zipf(n_pages: int, exponent: float = 0.99) -> Pages:
    """Return the writer to whom the i-th page has a chance of i^-exponent over its sum.

    Ranks above 4096 are taken in groups that grow by 1/1024: the mean is off by less than 1e-7.
    """
    edges = [float(i) for i in range(1, min(n_pages, 4096) + 2)]
    while edges[-1] <= n_pages:
        edges.append(min(float(n_pages + 1), math.ceil(edges[-1] * (1 + 1 / 1024))))
    low, high = np.array(edges[:-1]), np.array(edges[1:])
    sizes = high - low
    # The middle of a group's ranks stands for all of them.
    weights = ((low + high - 1) / 2) ** -exponent
    return Pages(sizes, weights / float(sizes @ weights))


@dataclass(frozen=True)
class Sweep:
    """A writer that goes through the pages in address order, round and round.

    Attributes:
        n_pages: pages of a round.
        writes_per_page: writes to one page before the next; where in them the first moment
            falls is uniformly random, and the only randomness there is.
    """

    n_pages: int
    writes_per_page: int = 1

    def after(self, seconds: float, rate: float) -> Distinct:
        """Return the distinct pages after ``seconds`` at a steady rate."""
        return self.after_writes(rate * seconds)

    def after_writes(self, writes: float) -> Distinct:
        """Return the distinct pages after ``writes`` writes."""
        w = math.floor(writes)
        if w <= 0:
            return Distinct(0.0, 0.0)
        pages, rest = divmod(w + self.writes_per_page - 1, self.writes_per_page)
        fewer, more = min(pages, self.n_pages), min(pages + 1, self.n_pages)
        chance = rest / self.writes_per_page
        return Distinct(
            fewer + chance * (more - fewer), chance * (1 - chance) * (more - fewer) ** 2
        )


@dataclass(frozen=True)
class Bursts:
    """A writer that works and pauses in turn, looked at from a random moment.

    Attributes:
        writer: the writer while it works.
        on: seconds of work.
        off: seconds of pause.
    """

    writer: Writer
    on: float
    off: float

    @property
    def n_pages(self) -> int:
        """Pages that the writer may write."""
        return self.writer.n_pages

    def after(self, seconds: float, rate: float) -> Distinct:
        """Return the distinct pages, averaged over the phase; ``rate`` holds while it works.

        Over a random phase the working time inside a window is a trapezoid: constant, rising,
        constant, falling. The variance is the mean of the variances plus the variance of the means.
        """
        whole, rest = divmod(seconds, self.on + self.off)
        low = whole * self.on + max(0.0, rest - self.off)
        high = whole * self.on + min(rest, self.on)
        nodes, weights = np.polynomial.legendre.leggauss(24)
        between = low + (high - low) * (nodes + 1) / 2
        times = [high, low, *between.tolist()]
        shares = np.array(
            [abs(self.on - rest), abs(self.off - rest), *(weights * (high - low)).tolist()]
        ) / (self.on + self.off)
        means, variances = np.array([self.writer.after(t, rate) for t in times]).T
        mean = float(shares @ means)
        return Distinct(mean, float(shares @ (variances + (means - mean) ** 2)))


def sampled_variance(
    distinct: Distinct, n_total: int, n_sampled: int, *, replacement: bool = True
) -> float:
    """Return the variance of the estimated dirty pages, the writer's own randomness included.

    That is E[Var(estimate given D)] + Var(D). Source: W. G. Cochran, "Sampling Techniques", 3rd
    ed., chapter 3. For one page from each of n equal strata it is exact when all pages are
    equally likely to be dirty; where dirty pages lie together, strata do better (chapter 5).

    Args:
        distinct: dirty pages, as a writer's ``after`` gives them.
        n_total: pages sampled from.
        n_sampled: samples.
        replacement: whether a page can be drawn twice.
    """
    fraction = distinct.mean / n_total
    of_one = fraction * (1 - fraction) - distinct.variance / n_total**2
    left = 1.0 if replacement else (n_total - n_sampled) / max(n_total - 1, 1)
    return n_total**2 * max(of_one, 0.0) / n_sampled * left + distinct.variance


def strata_variance(pages: Pages, writes: float, n_sampled: int) -> float:
    """Return the same for one page of each stratum, when the pages of a group lie together.

    All pages of a stratum then have one chance to be dirty, so that each sample is an independent
    indicator; a counted number of writes takes off what `Pages.after_writes` says.

    Args:
        pages: the writer; its pages are all the memory.
        writes: counted writes.
        n_sampled: strata.
    """
    if writes <= 0:
        return 0.0
    untouched = np.exp(-pages.chances * writes)
    load = pages.chances * writes
    poisson = pages.n_pages / n_sampled * float(pages.sizes @ (untouched * (1 - untouched)))
    return max(0.0, poisson - float(pages.sizes @ (load * untouched)) ** 2 / writes)


def dirty_rate(distinct_pages: float, seconds: float, page_size: int = PAGE_SIZE) -> float:
    """Return the dirty rate in MiB/s of pages that were dirtied in ``seconds``."""
    return distinct_pages * page_size / MIB / seconds
