# SPDX-License-Identifier: MIT
"""Monotone tables: more bandwidth or a longer downtime-limit never makes a migration take longer.

In QEMU's loop it sometimes does. With more bandwidth the 100 ms windows lie differently, and a
bitmap sync may come one window later. In a table of predictions that would look like an error.

So the model runs at fixed places on an axis only, which are the same in every table. Places are in
even steps of the logarithm. An octave is the range from one value to twice that value. The outcome
at any value is found in these steps:

1. The model runs at the ends of the octaves, from the top of the axis down to the octave that holds
   the value. Where a total time is shorter than the one above it, it is set to that one.
2. The model runs in the middle of that octave. Its total time is clipped to the range between those
   of the two ends. The half that holds the value is halved in the same way, and so on, until the
   two ends are neighbouring places.
3. Between these two, total times are interpolated linearly in the logarithm of the value. Where one
   of them does not converge, the nearer place decides.

This is done with the downtime-limits for each bandwidth, and then with the bandwidths for each
downtime-limit. The method is this project's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler import core
from pysampler.prediction.precopy_model import UNLIMITED_MS, Precopy, migrate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pysampler.prediction.ensemble import Ensemble

# How many outcomes, of 48 bytes each, `migrate_table` has in memory at once. More members than that
# makes are migrated in parts.
RECORDS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class _BisectionStep:
    """A place on the way to a value, and those before it that bound it."""

    place: int
    higher: int | None
    lower: int | None


@dataclass(frozen=True, slots=True)
class _Bisection:
    """How a value is reached, by halving its octave.

    Attributes:
        steps: in their order, the bounds of each before itself.
        low: the last place up to the value.
        high: the next one; the same where the value is a place.
        nearness: of the value to low: 1 there, 0 at high.
    """

    steps: tuple[_BisectionStep, ...]
    low: int
    high: int
    nearness: float


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of values, with places in even steps of the logarithm.

    Attributes:
        least: value of place 0.
        octaves: number of octaves from place 0 to the last place.
        steps: number of places to an octave, a power of two.
    """

    least: float
    octaves: int
    steps: int

    @property
    def most(self) -> float:
        """The value of the last place."""
        return self.value(self.octaves * self.steps)

    def value(self, place: int) -> float:
        """Return the value of a place."""
        return float(self.least * 2 ** (place / self.steps))

    def values(self, least: float, most: float) -> list[float]:
        """Return the values of the places from the octave with ``least`` in it up to ``most``."""
        first = math.floor(math.log2(least / self.least)) * self.steps
        last = math.floor(math.log2(most / self.least) * self.steps)
        return [self.value(place) for place in range(first, last + 1)]

    def bisection(self, value: float) -> _Bisection:
        """Return the bisection to a value; outside the axis, to the nearer end."""
        place = self.octaves * self.steps
        wanted = min(max(self.steps * math.log2(value / self.least), 0), place)
        steps = [_BisectionStep(place, None, None)]
        while place > wanted:
            place -= self.steps
            steps.append(_BisectionStep(place, place + self.steps, None))
        low, high = place, place + self.steps
        while low < wanted and high - low > 1:
            middle = (low + high) // 2
            steps.append(_BisectionStep(middle, high, low))
            low, high = (middle, high) if middle <= wanted else (low, middle)
        return _Bisection(tuple(steps), low, high if low < wanted else low, low + 1 - wanted)


BANDWIDTH_AXIS = Axis(1.0, 40, 256)  # to 1.1e12 bytes/s
# 125 ms and its octaves are places.
DOWNTIME_AXIS = Axis(125 / 1024, math.ceil(math.log2(UNLIMITED_MS / 125 * 1024)), 32)


def migrate_table(
    ensemble: Ensemble,
    precopy: Precopy,
    bandwidths: Sequence[float],
    limits: Sequence[float | None],
) -> NDArray[Any]:
    """Migrate every guest of an ensemble with every bandwidth and every downtime-limit.

    Args:
        ensemble: the guests.
        precopy: setup of the migrations.
        bandwidths: values of max-bandwidth, bytes per second.
        limits: values of downtime-limit, ms; None: unlimited.

    Returns:
        core.PRECOPY_OUTCOME, shape [guests, bandwidths, limits]. A total time is infinite where the
        migration does not converge. No guest has a longer total time with more bandwidth or a
        longer limit, in this table and from one table to another. The other members are those of
        the place below the value. Where that one does not converge, they are those of the next
        place that the bisection reached and that does.
    """
    bisections = [BANDWIDTH_AXIS.bisection(bandwidth) for bandwidth in bandwidths]
    limit_bisections = [
        DOWNTIME_AXIS.bisection(math.inf if limit is None else limit) for limit in limits
    ]
    n_rows = len({step.place for bisection in bisections for step in bisection.steps})
    at_once = max(1, RECORDS_AT_ONCE // (n_rows * len(limits)))
    parts = [
        _migrate_some(ensemble.part(first, first + at_once), precopy, bisections, limit_bisections)
        for first in range(0, len(ensemble.guests), at_once)
    ]
    return np.concatenate(parts)


def _migrate_some(
    ensemble: Ensemble,
    precopy: Precopy,
    bisections: Sequence[_Bisection],
    limit_bisections: Sequence[_Bisection],
) -> NDArray[Any]:
    rows = {
        step.place: _row(ensemble, precopy, BANDWIDTH_AXIS.value(step.place), limit_bisections)
        for step in _all_steps(bisections)
    }
    outcomes = _stacked(_reach(bisections, rows))
    outcomes["converged"] = np.isfinite(outcomes["total_ms"])
    return outcomes


def _row(
    ensemble: Ensemble, precopy: Precopy, bandwidth: float, bisections: Sequence[_Bisection]
) -> NDArray[Any]:
    """Return the outcomes with one bandwidth: members x limits."""
    steps = _all_steps(bisections)
    index = {step.place: i for i, step in enumerate(steps)}
    outcomes = migrate(
        ensemble,
        precopy,
        [(bandwidth, DOWNTIME_AXIS.value(place)) for place in index],
        [-1 if step.higher is None else index[step.higher] for step in steps],
    )
    outcomes["total_ms"][outcomes["converged"] == 0] = np.inf
    found = {place: outcomes[:, i] for place, i in index.items()}
    return _stacked(_reach(bisections, found))


def _all_steps(bisections: Sequence[_Bisection]) -> list[_BisectionStep]:
    """Return each step once, bounds first."""
    return list({step.place: step for bisection in bisections for step in bisection.steps}.values())


def _stacked(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return outcomes with a second axis, of the columns."""
    # Without the dtype, numpy promotes that of each pair of columns: it takes ten times as long.
    return np.stack(columns, axis=1, dtype=core.PRECOPY_OUTCOME)


def _reach(
    bisections: Sequence[_Bisection], found: Mapping[int, NDArray[Any]]
) -> list[NDArray[Any]]:
    """Return the outcomes at the end of each bisection, from those at the places of its steps."""
    reached: dict[int, NDArray[Any]] = {}
    for step in _all_steps(bisections):
        own = reached[step.place] = found[step.place].copy()
        if step.lower is not None:
            lower = reached[step.lower]
            failed = np.isinf(own["total_ms"])
            own[failed] = lower[failed]
            own["total_ms"] = np.minimum(own["total_ms"], lower["total_ms"])
        if step.higher is not None:
            own["total_ms"] = np.maximum(own["total_ms"], reached[step.higher]["total_ms"])
    return [
        _between(reached[bisection.low], reached[bisection.high], bisection.nearness)
        for bisection in bisections
    ]


def _between(low: NDArray[Any], high: NDArray[Any], nearness: float) -> NDArray[Any]:
    """Return the outcomes between two places; that of `low` is never the earlier one."""
    fails = np.isinf(low["total_ms"])
    outcomes = low.copy()
    if nearness < 0.5:
        outcomes[fails] = high[fails]
    latest, earliest = low["total_ms"][~fails], high["total_ms"][~fails]
    # Not later than `low` because of the last bit.
    total = np.minimum(latest, earliest + nearness * (latest - earliest))
    outcomes["total_ms"][~fails] = total
    outcomes["downtime_ms"] = np.minimum(outcomes["downtime_ms"], outcomes["total_ms"])
    return outcomes
