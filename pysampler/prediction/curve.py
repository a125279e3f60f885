# SPDX-License-Identifier: MIT
"""The dirty-page curve: the pages that are dirty a time t after the baseline pass, from a vector.

The curve D(t) is a sum of components. A component is a number of pages that are written alike, its
mass m. There are two kinds:

- Random: each page is written at random, lambda times a second, independently of the others. After
  t, m (1 - exp(-lambda t)) pages are dirty.
- Sequential: a writer goes through the pages in order, over and over. One lap over all of them
  takes a time L. After t, m min(1, t / L) pages are dirty.

The fit chooses rates from a grid, and the masses of components with these rates. Masses of many
components come from non-negative least squares (C. L. Lawson and R. J. Hanson, "Solving Least
Squares Problems", 1974, chapter 23). One or two components have a solution in closed form.

The curve is fitted to the increments of the vector: the samples that are newly dirty in each
period. Each sample gets dirty once, so the increments are multinomial. They are nearly independent
of each other, and the variance of each is about its mean. The points of the vector have neither
property.

The following is tried in this order, until one explains the vector by its chi-square:

1. random components;
2. random and sequential components;
3. both kinds in bursts: the guest writes only in a part of each period of the bursts;
4. the measured points, joined by lines.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pysampler.core import PRECOPY_COMPONENTS, ComponentKind
from pysampler.errors import FormatError
from pysampler.prediction.unreadable import unreadable_samples

if TYPE_CHECKING:
    from pysampler.vector.intervals import FloatArray
    from pysampler.vector.measurement import Measurement

# Besides the sampling noise a guest's own unsteadiness, as a share of an increment.
_UNSTEADY = 0.02
# What a component must gain in chi-square: it has two parameters.
_COST_OF_A_COMPONENT = 6.0
_COST_OF_ORDER = 8.0  # and the first sequential one: few guests write all their memory in order
COLDEST = 0.05  # writes of a page until the last period; fewer cannot be told
_RANDOM_RATES, _SEQUENTIAL_RATES = 48, 72
_SAME_RATE = 1.35  # components closer than this cannot be told apart
_BURST_PERIODS_S = (0.25, 0.5, 1.0, 2.0, 4.0)
_BURST_SHARES = (0.25, 0.5, 0.75)
_BURST_PHASES = 16
_BURST_FINALISTS = 4
_MOST_PERIODS = 256  # a measurement has some dozens; more say nothing new, and each costs time


@dataclass(frozen=True, slots=True)
class Component:
    """A component: pages that are written alike.

    Attributes:
        pages: number of pages.
        rate: of a random component: writes of each page per second. Of a sequential one: laps over
            all pages per second.
        kind: random or sequential.
    """

    pages: float
    rate: float
    kind: ComponentKind


@dataclass(frozen=True, slots=True)
class Burst:
    """Bursts: the guest writes only in the first part of each period of the bursts.

    Attributes:
        period_s: length of a period, s.
        on_s: length of its first part, in which the guest writes, s.
        phase_s: time from the beginning of a period to the baseline pass, s.
    """

    period_s: float
    on_s: float
    phase_s: float

    def active(self, seconds: FloatArray) -> FloatArray:
        """Return the time in s that the guest has written, of each time since the baseline pass."""

        def until(t: FloatArray) -> FloatArray:
            laps = np.floor(t / self.period_s)
            return laps * self.on_s + np.minimum(t - laps * self.period_s, self.on_s)

        return until(seconds + self.phase_s) - until(np.asarray(self.phase_s))


@dataclass(frozen=True, slots=True, eq=False)
class DirtyCurve:
    """A fitted dirty-page curve. Pages are pages of the whole guest.

    Attributes:
        components: the components, the highest rate first. There are none when nothing was written.
            An interpolated curve has only those of pages that no sample saw written (unseen.py).
        burst: the guest's bursts; None when it writes all the time.
        knots_s: times of the measured points that lines join, s. Empty when the curve is not
            interpolated.
        knots_pages: dirty pages at these times; they never fall.
        nonzero_pages: pages that are not zero. The curve never exceeds them.
        zero_pages: zero pages.
        chi2: chi-square of the fit: the sum of the weighted squared residuals of the increments.
        freedom: degrees of freedom of ``chi2``.
    """

    components: tuple[Component, ...]
    burst: Burst | None
    knots_s: tuple[float, ...]
    knots_pages: tuple[float, ...]
    nonzero_pages: float
    zero_pages: float
    chi2: float
    freedom: int

    @property
    def interpolated(self) -> bool:
        """Whether lines join the measured points, as no components explain the vector."""
        return bool(self.knots_s)

    @property
    def quality(self) -> str:
        """What was fitted, and its chi-square, in one line."""
        if self.interpolated:
            return (
                f"interpolated: no modes explain this vector (chi-square {self.chi2:.0f} with "
                f"{self.freedom} degrees of freedom): bursts or phases, or an unsteady guest"
            )
        random = sum(component.kind is ComponentKind.RANDOM for component in self.components)
        parts = [f"{random} random mode{'s' * (random != 1)}"]
        if len(self.components) > random:
            sequential = len(self.components) - random
            parts.append(f"{sequential} sequential mode{'s' * (sequential != 1)}")
        if self.burst:
            parts.append(f"in bursts, {self.burst.on_s:g} s of each {self.burst.period_s:g} s")
        fit = f"chi-square {self.chi2:.1f} with {self.freedom} degrees of freedom"
        return f"{', '.join(parts)}; {fit}"

    def __call__(self, seconds: FloatArray) -> FloatArray:
        """Return the dirty pages after each of these times in s, as an array of their shape."""
        t = np.asarray(seconds, dtype=np.float64)
        active = self.burst.active(t) if self.burst else t
        pages = np.interp(t, (0.0, *self.knots_s), (0.0, *self.knots_pages))
        for component in self.components:
            pages = pages + component.pages * dirty_share(component.kind, component.rate * active)
        return np.asarray(pages)


def dirty_share(kind: ComponentKind, turns: FloatArray) -> FloatArray:
    """Return the share, from 0 to 1, of a component's pages that are dirty.

    Args:
        kind: kind of the component.
        turns: its rate times the time since the baseline pass, of any shape.
    """
    return np.minimum(1.0, turns) if kind is ComponentKind.SEQUENTIAL else -np.expm1(-turns)


class Basis:
    """The components that a fit may choose: a grid of rates of each kind.

    Attributes:
        rates: rate of each component, per second, shape [components].
        kinds: kind of each component.
        increments: share of each component's pages that gets dirty in each period, shape
            [periods, components].
        burst: the guest's bursts; None when it writes all the time.

    Args:
        seconds: rising times of the compare passes, s, shape [periods].
        burst: the guest's bursts, if any.
    """

    def __init__(self, seconds: FloatArray, burst: Burst | None = None) -> None:
        active = burst.active(seconds) if burst else seconds
        first, last = seconds[0], seconds[-1]
        random = np.geomspace(COLDEST / last, 12 / first, _RANDOM_RATES)
        laps = np.geomspace(0.25 / last, 1 / first, _SEQUENTIAL_RATES)
        self.rates = np.append(random, laps)
        self.kinds = [ComponentKind.RANDOM] * len(random) + [ComponentKind.SEQUENTIAL] * len(laps)
        shares = np.hstack(
            [
                dirty_share(ComponentKind.RANDOM, np.outer(active, random)),
                dirty_share(ComponentKind.SEQUENTIAL, np.outer(active, laps)),
            ]
        )
        self.increments = np.diff(shares, axis=0, prepend=np.zeros((1, shares.shape[1])))
        self.burst = burst

    def components(self, masses: FloatArray, scale: float) -> tuple[Component, ...]:
        """Return the components of positive mass, the highest rate first.

        Components of one kind with nearly the same rate become one.

        Args:
            masses: mass of each component of the grid, in samples.
            scale: pages per sample.
        """
        components = [
            Component(float(mass) * scale, float(rate), kind)
            for mass, rate, kind in zip(masses, self.rates, self.kinds, strict=True)
            if mass > 0
        ]
        return merged(components, PRECOPY_COMPONENTS)


class Fitter:
    """Fits vectors of one guest, all with the same weights.

    Each component costs a fixed amount of chi-square for its parameters. The fit with the least
    chi-square and costs is taken. The candidates are one or two components, any number of random
    components, and any number of both kinds.

    Args:
        basis: the components to choose from.
        weights: the inverse of the standard deviation of each increment, shape [periods].
        few: take one or two components, whatever more of them would explain.
    """

    def __init__(self, basis: Basis, weights: FloatArray, *, few: bool = False) -> None:
        self._only_few = few
        self.basis, self._weights = basis, weights
        self._columns = columns = basis.increments * weights[:, None]
        gram = columns.T @ columns
        self._own = own = np.maximum(np.diag(gram), 1e-300)
        order = np.where(np.array(basis.kinds) == ComponentKind.SEQUENTIAL, _COST_OF_ORDER, 0.0)
        self._one_cost = _COST_OF_A_COMPONENT + order
        first, second = np.triu_indices(len(own), 1)
        determinant = own[first] * own[second] - gram[first, second] ** 2
        usable = determinant > 1e-9 * own[first] * own[second]
        # Of one period only, no two components can be told apart: there is no pair then.
        first, second, determinant = first[usable], second[usable], determinant[usable]
        self._pairs = first, second
        # The inverse of each pair's 2 x 2 normal equations.
        self._inverse_first, self._inverse_second = (
            own[second] / determinant,
            own[first] / determinant,
        )
        self._inverse_across = gram[first, second] / determinant
        # Two rates of the same kind next to each other stand for one between them.
        between = (second - first == 1) & (second != _RANDOM_RATES)
        self._pair_cost = np.where(between, _COST_OF_A_COMPONENT, 2 * _COST_OF_A_COMPONENT)
        self._pair_cost += np.maximum(order[first], order[second])

    def fit(
        self, increments: FloatArray, limit: float, luck: FloatArray | float = 0.0
    ) -> tuple[FloatArray, float]:
        """Fit one vector.

        Args:
            increments: newly dirty samples of each period, shape [periods].
            limit: largest sum of all masses, in samples.
            luck: amount that is taken off the cost of each component where it stands alone, shape
                [components] or one number. Random amounts draw one of the fits that are about
                equally good.

        Returns:
            The mass of each component of the basis in samples, shape [components], and chi-square.
        """
        target = increments * self._weights
        masses, cost = self._few(target, limit, luck)
        # With less, even a perfect fit of three components would cost more.
        if cost > 3 * _COST_OF_A_COMPONENT and not self._only_few:
            n = len(self.basis.rates)
            for n_columns, order in ((_RANDOM_RATES, 0.0), (n, _COST_OF_ORDER)):
                many = np.zeros(n)
                many[:n_columns] = self._many(target, limit, n_columns)
                components = len(self.basis.components(many, 1.0))
                many_cost = self._chi2(target, many) + components * _COST_OF_A_COMPONENT + order
                if many_cost < cost:
                    masses, cost = many, many_cost
        return masses, self._chi2(target, masses)

    def _chi2(self, target: FloatArray, masses: FloatArray) -> float:
        return float(((self._columns @ masses - target) ** 2).sum())

    def _many(self, target: FloatArray, limit: float, n_columns: int) -> FloatArray:
        """Return the masses of the first components that fit best."""
        from scipy.optimize import nnls  # noqa: PLC0415 - slow to import

        # Masses and one slack add up to the limit: a heavy row says so.
        heavy = 1e3 * max(1.0, float(np.abs(target).max()))
        matrix = np.zeros((len(target) + 1, n_columns + 1))
        matrix[:-1, :-1], matrix[-1] = self._columns[:, :n_columns] * limit, heavy
        shares, _ = nnls(matrix, np.append(target, heavy))
        return np.asarray(shares[:-1] * limit)

    def _few(
        self, target: FloatArray, limit: float, luck: FloatArray | float
    ) -> tuple[FloatArray, float]:
        """Return the best one or two components and what they cost."""
        image, square = self._columns.T @ target, float(target @ target)
        masses = np.zeros(len(image))
        one = np.clip(image / self._own, 0.0, limit)
        one_cost = square - 2 * one * image + one**2 * self._own + self._one_cost
        best = int(np.argmin(one_cost - luck))
        masses[best], cost = one[best], float(one_cost[best])
        first, second = self._pairs
        if not len(first):
            return masses, cost
        one, other = image[first], image[second]
        x = self._inverse_first * one - self._inverse_across * other
        y = self._inverse_second * other - self._inverse_across * one
        pair_cost = square - x * one - y * other + self._pair_cost
        pair_cost[(x <= 0) | (y <= 0) | (x + y > limit)] = np.inf
        best = int(np.argmin(pair_cost))
        if pair_cost[best] < cost:
            masses[:] = 0.0
            masses[first[best]], masses[second[best]] = x[best], y[best]
            cost = float(pair_cost[best])
        return masses, cost


def merged(components: list[Component], at_most: int) -> tuple[Component, ...]:
    """Return components with those of nearly the same rate made one, the highest rate first.

    Args:
        components: components in any order.
        at_most: largest number of components to return. Where there are more, rates that differ
            more are taken for nearly the same.
    """
    ratio = _SAME_RATE
    while True:
        kept: list[Component] = []
        for component in sorted(
            components, key=lambda component: (component.kind, -component.rate)
        ):
            last = kept[-1] if kept else None
            if last and last.kind == component.kind and last.rate < ratio * component.rate:
                pages = last.pages + component.pages
                rate = (last.pages * last.rate + component.pages * component.rate) / pages
                kept[-1] = Component(pages, rate, component.kind)
            else:
                kept.append(component)
        if len(kept) <= at_most:
            return tuple(sorted(kept, key=lambda component: -component.rate))
        components, ratio = kept, ratio * 1.2


@dataclass(frozen=True, slots=True)
class Counts:
    """The numbers of a vector that a curve is fitted to.

    Of more than 256 periods, 256 evenly spaced ones are taken, with the first and the last.

    Attributes:
        seconds: rising times of the compare passes since the baseline pass, s, shape [periods].
        dirty: dirty samples at each of them, shape [periods].
        sampled: number of samples drawn.
        zero: number of samples that are zero pages.
        scale: pages of the guest per sample.
        unreadable: number of samples that could not be compared, so may be dirty or not.
    """

    seconds: FloatArray
    dirty: FloatArray
    sampled: int
    zero: float
    scale: float
    unreadable: int = 0

    @property
    def exact(self) -> bool:
        """Whether every page of the guest was compared."""
        return self.scale == 1 and not self.unreadable

    @classmethod
    def of(cls, measurement: Measurement) -> Counts:
        """Return the numbers of a measurement.

        Raises:
            FormatError: nothing was sampled or compared, or the periods do not rise. The message
                names the key.
        """
        if not measurement.n_sampled_pages:
            raise FormatError("n-sampled-pages: 0; nothing was sampled")
        if not measurement.periods:
            raise FormatError("periods: none; nothing was compared, so nothing can be predicted")
        seconds = measurement.curve().seconds
        if (np.diff(seconds, prepend=0.0) <= 0).any():
            raise FormatError("periods: each must come after the one before it, the first after 0")
        n, n_kept = len(seconds), min(len(seconds), _MOST_PERIODS)
        kept = (
            np.arange(n_kept) * (n - 1) // max(1, n_kept - 1)
        )  # the first and the last among them
        return cls(
            seconds[kept],
            np.asarray(measurement.n_dirty_pages, dtype=np.float64)[kept],
            measurement.n_sampled_pages,
            measurement.n_zero_pages,
            measurement.n_total_pages / measurement.n_sampled_pages,
            unreadable_samples(measurement),
        )

    @property
    def increments(self) -> FloatArray:
        """Newly dirty samples of each period, shape [periods].

        An increment is negative where samples got their old content back.
        """
        return np.diff(self.dirty, prepend=0.0)

    @property
    def limit(self) -> float:
        """Number of samples that can get dirty.

        These are the samples that are not zero pages. Where more were seen dirty, these are.
        """
        return max(float(self.sampled - self.zero), float(self.dirty.max()), 1.0)

    def weights(self, expected: FloatArray) -> FloatArray:
        """Return the inverse of the standard deviation of each increment, shape [periods].

        Args:
            expected: expected increments in samples, shape [periods].
        """
        mean = np.maximum(expected, 0.5)
        return np.asarray(1 / np.sqrt(mean + (_UNSTEADY * mean) ** 2))


def _explained(chi2: float, freedom: int) -> bool:
    return chi2 <= freedom + 4.5 * math.sqrt(2 * freedom)


def fitter_of(counts: Counts, basis: Basis) -> Fitter:
    """Return a fitter for the vectors of one guest.

    Its weights come from a first fit of this vector. So does the choice of one or two components,
    where these explain it.
    """
    expected, few = np.maximum(counts.increments, 1.0), False
    for _ in range(2):
        masses, _ = Fitter(basis, counts.weights(expected)).fit(counts.increments, counts.limit)
        expected = basis.increments @ masses
        few = bool(np.count_nonzero(masses) <= 2)
    return Fitter(basis, counts.weights(expected), few=few)


class _Tried(NamedTuple):
    """A burst that was tried."""

    cost: float  # chi-square, and what its components cost
    chi2: float
    burst: Burst
    fitter: Fitter


class Choice(NamedTuple):
    """The choice of a fitter for the vectors of one guest.

    Attributes:
        fitter: the simplest fitter that explains the vector. Where none does, that of a guest that
            writes all the time.
        explains: whether the fitter explains the vector. If not, lines join the measured points.
        bursts: all bursts that were tried, where bursts explain the vector; else empty.
    """

    fitter: Fitter
    explains: bool
    bursts: tuple[_Tried, ...] = ()

    def drawn(self, rng: np.random.Generator) -> Fitter:
        """Return a fitter: where bursts explain the vector, that of a burst drawn at random.

        Few dirty samples do not tell one burst from another. So each burst is drawn with its
        likelihood (the Gumbel-max trick: C. J. Maddison et al., "A* Sampling", 2014).
        """
        if not self.bursts:
            return self.fitter
        # A cost is -2 log likelihood: the least of costs less Gumbel's noise is a draw from that.
        costs = np.array([tried.cost for tried in self.bursts])
        return self.bursts[int(np.argmin(costs - 2 * rng.gumbel(size=len(costs))))].fitter


def choose_fitter(counts: Counts) -> Choice:
    """Return the simplest fitter that explains the vector, or that none does."""
    freedom = max(1, len(counts.seconds) - 2)
    steady = fitter_of(counts, Basis(counts.seconds))
    if _explained(steady.fit(counts.increments, counts.limit)[1], freedom):
        return Choice(steady, explains=True)
    bursts = _bursts(counts)
    best = min(bursts, key=_cost)
    if _explained(best.chi2, max(1, freedom - 3)):
        return Choice(best.fitter, explains=True, bursts=bursts)
    return Choice(steady, explains=False)


def _bursts(counts: Counts) -> tuple[_Tried, ...]:
    """Return the bursts that were tried; the phases of those that explain the vector best finer."""
    coarse = []
    for period, share in itertools.product(_BURST_PERIODS_S, _BURST_SHARES):
        phases = np.arange(_BURST_PHASES) / _BURST_PHASES * period
        coarse.append(_tried(counts, period, share * period, phases))
    coarse.sort(key=lambda tried: min(map(_cost, tried)))
    # A strong writer shows its phase more finely than that, and from the wrong one it may look like
    # another's burst.
    finer = []
    for tried in coarse[:_BURST_FINALISTS]:
        burst = min(tried, key=_cost).burst
        step = burst.period_s / _BURST_PHASES
        phases = (burst.phase_s + np.linspace(-1, 1, 17) * step) % burst.period_s
        finer.append(_tried(counts, burst.period_s, burst.on_s, phases))
    return tuple(itertools.chain(*finer, *coarse[_BURST_FINALISTS:]))


def _tried(counts: Counts, period: float, on: float, phases: FloatArray) -> list[_Tried]:
    found = []
    for phase in phases:
        burst = Burst(period, on, float(phase))
        fitter = fitter_of(counts, Basis(counts.seconds, burst))
        masses, chi2 = fitter.fit(counts.increments, counts.limit)
        components = len(fitter.basis.components(masses, 1.0))
        found.append(_Tried(chi2 + components * _COST_OF_A_COMPONENT, chi2, burst, fitter))
    return found


def _cost(tried: _Tried) -> float:
    return tried.cost


def fit_curve(counts: Counts, choice: Choice, rng: np.random.Generator | None = None) -> DirtyCurve:
    """Fit the dirty-page curve of one vector.

    Args:
        counts: the numbers of the vector.
        choice: what `choose_fitter` returned for the guest.
        rng: random numbers. With them, a burst is drawn with its likelihood, and so is the rate
            where one component explains the vector. None: the best burst and rate are taken.
    """
    nonzero = counts.limit * counts.scale
    zero = max(0.0, counts.sampled * counts.scale - nonzero)
    fitter = choice.fitter if rng is None else choice.drawn(rng)
    # As with bursts.
    luck = 0.0 if rng is None else 2 * rng.gumbel(size=len(fitter.basis.rates))
    masses, chi2 = fitter.fit(counts.increments, counts.limit, luck)
    if not choice.explains:
        freedom = max(1, len(counts.seconds) - 2)
        knots = _joined(counts, nonzero)
        return DirtyCurve((), None, *knots, nonzero, zero, chi2, freedom)
    components = fitter.basis.components(masses, counts.scale)
    freedom = max(1, len(counts.seconds) - 2 * len(components))
    return DirtyCurve(components, fitter.basis.burst, (), (), nonzero, zero, chi2, freedom)


def _joined(counts: Counts, nonzero: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return times and pages of the measured points, made to rise."""
    rising = np.maximum.accumulate(counts.dirty) * counts.scale
    seconds, pages = list(counts.seconds), list(rising)
    if len(pages) > 1 and pages[-2] < pages[-1] < nonzero:
        # The last line goes on to where every page is dirty, as in the published predictor.
        slope = (pages[-1] - pages[-2]) / (seconds[-1] - seconds[-2])
        seconds.append(seconds[-1] + (nonzero - pages[-1]) / slope)
        pages.append(nonzero)
    return tuple(seconds), tuple(pages)
