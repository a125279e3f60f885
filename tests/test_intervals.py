import numpy as np
import pytest
from scipy import stats

from pysampler.intervals import clopper_pearson, hypergeometric, stratified, wilson

pytestmark = pytest.mark.statistics


def exact_coverage(low, high, trials, fraction):
    """Chance that the interval holds the true fraction, over every possible count."""
    counts = np.arange(trials + 1)
    covers = (low <= fraction) & (fraction <= high)
    return float(stats.binom.pmf(counts, trials, fraction) @ covers)


FRACTIONS = [0.0005, 0.0021, 0.0107, 0.0503, 0.131, 0.5, 0.869, 0.9893, 0.9991]


@pytest.mark.parametrize("trials", [513, 4097, 16392])
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_clopper_pearson_never_covers_less_than_its_level(trials, fraction):
    low, high = clopper_pearson(np.arange(trials + 1), trials)
    assert exact_coverage(low, high, trials, fraction) >= 0.95


@pytest.mark.parametrize("trials", [513, 4097, 16392])
def test_wilson_covers_its_level_on_average_over_fractions(trials):
    # One fraction's coverage jumps with the lattice of counts: the mean over many is the claim.
    low, high = wilson(np.arange(trials + 1), trials)
    fractions = np.geomspace(8 / trials, 0.5, 200)
    mean = np.mean([exact_coverage(low, high, trials, f) for f in fractions])
    assert 0.948 <= mean <= 0.956


@pytest.mark.parametrize("trials", [1, 129])
def test_no_success_starts_at_zero_and_has_the_exact_upper_end(trials):
    low, high = clopper_pearson(0, trials)
    assert (float(low), float(high)) == (0, pytest.approx(1 - 0.025 ** (1 / trials)))


@pytest.mark.parametrize(
    ("trials", "population"), [(7, 31), (33, 65), (129, 513), (1, 2), (65, 65)]
)
def test_the_hypergeometric_interval_never_covers_less_than_its_level(trials, population):
    ends = [hypergeometric(k, trials, population) for k in range(trials + 1)]
    low, high = np.array(ends).T
    counts = np.arange(trials + 1)
    for dirty in range(population + 1):
        pmf = stats.hypergeom.pmf(counts, population, dirty, trials)
        assert pmf @ ((low <= dirty) & (dirty <= high)) >= 0.95 - 1e-12


def test_a_sample_of_everything_leaves_nothing_open():
    assert hypergeometric(17, 65, 65) == (17, 17)
    assert [float(end) for end in stratified(17, 9, 65, 65)] == [17 / 65] * 2


def test_few_samples_of_many_pages_are_nearly_binomial():
    population = 1 << 26
    low, high = np.array(hypergeometric(40, 513, population)) / population
    assert (low, high) == pytest.approx([float(end) for end in clopper_pearson(40, 513)], rel=1e-3)


def test_the_interval_of_strata_is_wilsons_where_neighbours_are_independent():
    # 2 k (n - k) / n^2 of the n - 1 pairs of neighbours differ when dirty pages lie anywhere.
    trials, k = 1025, np.array([2, 41, 512, 1000])
    changes = 2 * k * (trials - k) / trials**2 * (trials - 1)
    expected = wilson(k, trials)
    low, high = stratified(k, changes, trials, 1 << 40)
    assert low == pytest.approx(expected[0])
    assert high == pytest.approx(expected[1])


def test_dirty_pages_that_lie_together_narrow_the_interval_of_strata():
    scattered = stratified(100, 180, 1000, 1 << 30)
    together = stratified(100, 2, 1000, 1 << 30)
    assert together[1] - together[0] < 0.2 * (scattered[1] - scattered[0])


@pytest.mark.parametrize(("successes", "changes"), [(0, 0), (1, 1), (1, 2), (512, 1), (513, 0)])
def test_the_interval_of_strata_stays_inside_the_possible(successes, changes):
    low, high = stratified(successes, changes, 513, 8192)
    assert 0 <= low <= successes / 513 <= high <= 1


def test_nothing_drawn_says_nothing():
    assert [float(end) for end in stratified(0, 0, 0, 100)] == [0, 1]
