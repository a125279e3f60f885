# SPDX-License-Identifier: MIT
"""Tables in which more bandwidth or a longer downtime-limit never makes a migration later.

QEMU's loop does that now and then: the 100 ms windows fall otherwise, and a sync comes one window
later. Who reads a prediction takes it for more than that, so here a migration takes at least as
long as each that has more of one and no less of the other.

For the downtime-limit these are always the same, whatever the table: the limits of `RUNGS_MS`, and
ten steps between two of them for a limit that is none. So it holds between tables as well. For the
bandwidth they are those of the table.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler import core
from pysampler.prediction.precopy import MOST_DOWNTIME_MS, Precopy, migrate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pysampler.intervals import FloatArray
    from pysampler.prediction.ensemble import Ensemble

# Up to the most that QEMU takes. Between two there are ten steps, so that a limit of two digits is
# run as it is, others as at most 4 % less.
RUNGS_MS = tuple(
    float(f"{digits}e{decade}")
    for decade in range(-1, 7)
    for digits in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    if float(f"{digits}e{decade}") <= MOST_DOWNTIME_MS
)
_STEPS = 10


def migrate_table(
    ensemble: Ensemble,
    precopy: Precopy,
    bandwidths: Sequence[float],
    limits: Sequence[float | None],
) -> NDArray[Any]:
    """Migrate every member of an ensemble with every bandwidth and downtime-limit.

    Args:
        ensemble: the guests.
        precopy: how they are migrated.
        bandwidths: bytes per second.
        limits: downtime-limits in ms; None: unlimited.

    Returns:
        core.PRECOPY_OUTCOME, shape [members, bandwidths, limits]. Where a migration with more
        bandwidth or a longer limit ends later, that is the total time here, too; where it does not
        converge, neither does this.
    """
    places = [_place(limit) for limit in limits]
    # The higher limits first: with those that are lower than one that fails nothing is run.
    ladder = [None, *reversed(RUNGS_MS[min(rung for rung, _ in places) :])]
    shape = len(ensemble.guests), len(bandwidths), len(limits)
    outcomes, ends = np.zeros(shape, dtype=core.PRECOPY_OUTCOME), np.zeros(shape)
    for b, bandwidth in enumerate(bandwidths):
        of_rungs = migrate(ensemble, precopy, [(bandwidth, limit) for limit in ladder])
        latest = np.maximum.accumulate(_ends(of_rungs), axis=1)
        for i, (rung, steps) in enumerate(places):
            column = len(RUNGS_MS) - rung
            outcomes[:, b, i], ends[:, b, i] = of_rungs[:, column], latest[:, column]
            if not steps:
                continue
            of_steps = migrate(ensemble, precopy, [(bandwidth, limit) for limit in steps])
            end = np.maximum(latest[:, column - 1], _ends(of_steps).max(axis=1))
            ends[:, b, i] = np.minimum(end, latest[:, column])
            own = of_steps[:, -1]
            ended = own["converged"] > 0
            outcomes[ended, b, i] = own[ended]
    order = np.argsort(bandwidths)[::-1]
    ends[:, order] = np.maximum.accumulate(ends[:, order], axis=1)
    converged = np.isfinite(ends)
    outcomes["converged"] = converged
    outcomes["total_ms"][converged] = ends[converged]
    return outcomes


def run_as(limit: float | None) -> float | None:
    """Return the downtime-limit in ms that is run in place of this one; None: unlimited."""
    rung, steps = _place(limit)
    if steps:
        return steps[-1]
    return RUNGS_MS[rung] if rung < len(RUNGS_MS) else None


def _ends(outcomes: NDArray[Any]) -> FloatArray:
    """Return total times, infinite where one does not converge."""
    return np.where(outcomes["converged"] > 0, outcomes["total_ms"], np.inf)


def _place(limit: float | None) -> tuple[int, list[float]]:
    """Return the last rung up to a limit, and the steps from under the next rung down to the limit.

    Unlimited comes after the rungs. A limit on a rung, or less than a step above it, has no steps.
    """
    if limit is None:
        return len(RUNGS_MS), []
    limit = min(max(limit, RUNGS_MS[0]), RUNGS_MS[-1])
    rung = bisect_right(RUNGS_MS, limit) - 1
    if rung == len(RUNGS_MS) - 1:
        return rung, []
    low, high = RUNGS_MS[rung : rung + 2]
    # Not a step lower because of the last bit.
    own = min(int((limit - low) / (high - low) * _STEPS + 1e-9), _STEPS - 1)
    steps = range(_STEPS - 1, own - 1, -1) if own else ()
    return rung, [low + (high - low) * step / _STEPS for step in steps]
