"""Intervals that never cover less than their level: what those of the package are held against."""

import numpy as np
from scipy import stats


def clopper_pearson(successes, trials, confidence=0.95):
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
    beta = stats.beta
    k = np.asarray(successes, dtype=np.float64)
    tail = (1 - confidence) / 2
    # The clipped shapes are only there to keep scipy from seeing a zero.
    low = np.where(k == 0, 0.0, beta.ppf(tail, np.maximum(k, 1), trials - k + 1))
    high = np.where(k == trials, 1.0, beta.isf(tail, k + 1, np.maximum(trials - k, 1)))
    return low, high


def hypergeometric(successes, trials, population, confidence=0.95):
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
    law = stats.hypergeom
    tail = (1 - confidence) / 2
    least, most = successes, population - (trials - successes)

    def too_few(dirty):
        return bool(law.sf(successes - 1, population, dirty, trials) <= tail)

    def few_enough(dirty):
        return bool(law.cdf(successes, population, dirty, trials) > tail)

    # Both chances are monotone in the number of dirty pages.
    return _first_false(too_few, least, most), _first_false(few_enough, least, most + 1) - 1


def _first_false(test, low, high):
    """Return the least x in [low, high] where a falling test fails; high where none does."""
    while low < high:
        middle = (low + high) // 2
        if test(middle):
            low = middle + 1
        else:
            high = middle
    return low
