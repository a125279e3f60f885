# SPDX-License-Identifier: MIT
"""The schedule of the compare passes: the periods of the vector."""

from __future__ import annotations

FIRST_PERIOD_MS = 125

# (below this period, the step to the next one), both in ms
_STEPS = ((500, 125), (1000, 250), (2000, 500), (4000, 1000), (10_000, 2000))
_LAST_STEP_MS = 5000


def periods_ms(calc_time_ms: int) -> tuple[int, ...]:
    """Return the periods at which the 2023 series measures, in ms since the baseline pass.

    They rise strictly from 125 ms and end at ``calc_time_ms``; a ``calc_time_ms`` of
    125 or less gives that one period.

    >>> periods_ms(1000)
    (125, 250, 375, 500, 1000)
    """
    periods = [min(FIRST_PERIOD_MS, calc_time_ms)]
    while periods[-1] < calc_time_ms:
        last = periods[-1]
        step = next((step for below, step in _STEPS if last < below), _LAST_STEP_MS)
        # The series looks one step further, so that the last two periods
        # are never closer together than that step: 50 s is followed by 60 s.
        following = last + step
        periods.append(calc_time_ms if following + step >= calc_time_ms else following)
    return tuple(periods)
