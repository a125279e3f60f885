# SPDX-License-Identifier: MIT
"""Confidence intervals of a sampled fraction.

=================  =============================================  =================================
interval           how the pages were drawn                       coverage
=================  =============================================  =================================
`wilson`           with replacement (profile qemu)                near the level on average
`stratified`       one page of each stratum (profile fast)        near the level on average
=================  =============================================  =================================
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def wilson(
    successes: ArrayLike, trials: int, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Return lower and upper ends of the Wilson score interval of a binomial fraction.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927). It stays inside [0, 1] and keeps its coverage at small
    fractions, where the normal interval does not.

    Args:
        successes: number of successes, any shape.
        trials: number of trials; with 0 the interval is [0, 1].
        confidence: two-sided coverage.

    Returns:
        Two arrays of the shape of ``successes``, both fractions.
    """
    k = np.asarray(successes, dtype=np.float64)
    if trials == 0:
        return np.zeros_like(k), np.ones_like(k)
    return _score(k / trials, np.asarray(float(trials)), confidence)


def stratified(
    successes: ArrayLike,
    changes: ArrayLike,
    trials: int,
    population: int,
    confidence: float = 0.95,
) -> tuple[FloatArray, FloatArray]:
    """Return the ends of an interval for one page drawn from each of n equal strata.

    Where dirty pages lie together, strata estimate better than n independent draws, and
    Wilson's interval, which does not know that, covers far more than its level. Here the variance
    comes from successive differences in address order: two neighbouring strata are taken for
    two draws from the same pages, less what drawing without replacement saves. Where neighbours
    are not alike, that makes the interval wider than it need be. The ends are Wilson's for the
    number of independent draws that would have this variance.

    Sources: K. M. Wolter, "Introduction to Variance Estimation", 2nd ed., sections 2.5
    (collapsed strata) and 8.2 (successive differences); L. Kish, "Survey Sampling" (1965), for
    the effective sample size; E. L. Korn and B. I. Graubard, Survey Methodology 24 (1998), for
    putting it into a binomial interval.

    Args:
        successes: number of successes, any shape.
        changes: how often, in address order, a success follows a failure or a failure a
            success; same shape.
        trials: number of strata.
        population: pages that the strata hold together.
        confidence: two-sided coverage.

    Returns:
        Two arrays of the shape of ``successes``, both fractions.
    """
    k = np.asarray(successes, dtype=np.float64)
    if trials == 0:
        return np.zeros_like(k), np.ones_like(k)
    if trials >= population:
        return k / trials, k / trials
    left = 1 - trials / population
    fraction = k / trials
    # With at least one success and one failure there is at least one change.
    of_strata = np.maximum(np.asarray(changes, dtype=np.float64), 1) / 2 / max(trials - 1, 1)
    alike = (k == 0) | (k == trials)
    effective = np.where(alike, 1.0, fraction * (1 - fraction) / of_strata) * trials / left
    return _score(fraction, effective, confidence)


def _score(
    fraction: FloatArray, trials: FloatArray, confidence: float
) -> tuple[FloatArray, FloatArray]:
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    centre = fraction * trials + z2 / 2
    half = np.sqrt(z2 * (fraction * (1 - fraction) * trials + z2 / 4))
    low, high = (centre - half) / (trials + z2), (centre + half) / (trials + z2)
    # Rounding must not leave 1e-19 where the answer is exactly 0 or 1.
    return np.where(fraction == 0, 0.0, low), np.where(fraction == 1, 1.0, high)
