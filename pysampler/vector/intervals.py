# SPDX-License-Identifier: MIT
"""Confidence intervals of a sampled fraction.

=================  =============================================  =================================
interval           how the pages were drawn                       coverage
=================  =============================================  =================================
`wilson`           with replacement (profile qemu)                near the level on average
`clopper_pearson`  with replacement                               never under the level
`hypergeometric`   simple random, without replacement             never under the level
`stratified`       one page of each stratum (profile fast)        near the level on average
=================  =============================================  =================================
"""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from collections.abc import Callable

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


def clopper_pearson(
    successes: ArrayLike, trials: int, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Return the ends of the Clopper-Pearson interval: guaranteed coverage, wider than Wilson's.

    Source: C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits
    illustrated in the case of the binomial", Biometrika 26 (1934).

    Args:
        successes: number of successes, any shape.
        trials: number of trials; with 0 the interval is [0, 1].
        confidence: least two-sided coverage.

    Returns:
        Two arrays of the shape of ``successes``, both fractions.
    """
    beta = _scipy_stats().beta
    k = np.asarray(successes, dtype=np.float64)
    tail = (1 - confidence) / 2
    # The clipped shapes are only there to keep scipy from seeing a zero.
    low = np.where(k == 0, 0.0, beta.ppf(tail, np.maximum(k, 1), trials - k + 1))
    high = np.where(k == trials, 1.0, beta.isf(tail, k + 1, np.maximum(trials - k, 1)))
    return low, high


def hypergeometric(
    successes: int, trials: int, population: int, confidence: float = 0.95
) -> tuple[int, int]:
    """Return the least and largest number of dirty pages that agree with what was drawn.

    For a simple random sample without replacement. Inverts both one-sided tests: a number of dirty
    pages agrees when neither tail has a chance of at most (1 - confidence) / 2. Source:
    J. P. Buonaccorsi, "A note on confidence intervals for proportions in finite populations",
    The American Statistician 41 (1987).

    Args:
        successes: dirty pages in the sample.
        trials: pages in the sample, at most ``population``.
        population: pages in all.
        confidence: least two-sided coverage.

    Returns:
        Two page counts, both inclusive.
    """
    law = _scipy_stats().hypergeom
    tail = (1 - confidence) / 2
    least, most = successes, population - (trials - successes)

    def too_few(dirty: int) -> bool:
        return bool(law.sf(successes - 1, population, dirty, trials) <= tail)

    def few_enough(dirty: int) -> bool:
        return bool(law.cdf(successes, population, dirty, trials) > tail)

    # Both chances are monotone in the number of dirty pages.
    return _first_false(too_few, least, most), _first_false(few_enough, least, most + 1) - 1


def _first_false(test: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least x in [low, high] where a falling test fails; high where none does."""
    while low < high:
        middle = (low + high) // 2
        if test(middle):
            low = middle + 1
        else:
            high = middle
    return low


def _scipy_stats() -> Any:
    from scipy import stats  # noqa: PLC0415 - slow to import

    return stats
