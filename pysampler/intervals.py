# SPDX-License-Identifier: MIT
"""Confidence intervals of a sampled fraction."""

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
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    centre = k + z2 / 2
    half = np.sqrt(z2 * (k * (trials - k) / trials + z2 / 4))
    low, high = (centre - half) / (trials + z2), (centre + half) / (trials + z2)
    # Rounding must not leave 1e-19 where the answer is exactly 0 or 1.
    return np.where(k == 0, 0.0, low), np.where(k == trials, 1.0, high)
