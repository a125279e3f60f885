import numpy as np
import pytest
from exact_intervals import clopper_pearson, hypergeometric
from scipy import stats

from pysampler import Measurement
from pysampler.vector.intervals import stratified, wilson

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


@pytest.mark.parametrize("trials", [129, 513, 4097])
def test_wilson_covers_nearly_its_level_where_few_or_no_successes_are_expected(trials):
    low, high = wilson(np.arange(trials + 1), trials)
    expected = np.geomspace(0.05, 8, 400)
    coverage = [exact_coverage(low, high, trials, e / trials) for e in expected]
    assert np.mean(coverage) >= 0.94
    # What falls short falls below one expected success, where seeing one is the exception, and at
    # the lower end: the upper one is missed as rarely as it should be.
    assert min(c for c, e in zip(coverage, expected, strict=True) if e > 0.2) > 0.85
    above = [exact_coverage(0 * low, high, trials, e / trials) for e in expected]
    assert min(above) >= 0.975


def vector(dirty, unreadable, trials, **details):
    """The vector of many draws, one for each period."""
    return Measurement(
        page_size=4096,
        periods=tuple(range(1, len(dirty) + 1)),
        n_dirty_pages=tuple(int(k) for k in dirty),
        n_sampled_pages=trials,
        n_zero_pages=0,
        n_total_pages=1 << 40,
        details={"unreadable": [int(u) for u in unreadable], **details},
    )


@pytest.mark.parametrize("hidden", [0, 0.02, 0.3, 0.9])
@pytest.mark.parametrize("of_hidden", [0, 1, None])
def test_an_interval_covers_whatever_the_samples_hold_that_were_not_seen(hidden, of_hidden):
    """By enumeration of all counts: nothing is left to chance."""
    trials = 127
    k, u = (grid.ravel() for grid in np.mgrid[: trials + 1, : trials + 1])
    k, u = k[k + u <= trials], u[k + u <= trials]
    curve = vector(k, u, trials).curve()
    coverage = []
    for fraction in np.geomspace(0.05, trials / 2, 100) / trials:
        chance = stats.binom.pmf(u, trials, hidden) * stats.binom.pmf(k, trials - u, fraction)
        share = fraction if of_hidden is None else of_hidden
        truth = (1 << 40) * (hidden * share + (1 - hidden) * fraction)
        coverage.append(chance @ ((curve.low <= truth) & (truth <= curve.high)))
    assert np.mean(coverage) >= 0.94
    assert min(coverage) >= 0.83  # Wilson's own, with less than one expected success


@pytest.mark.parametrize("hidden", [0, 0.05, 0.5])
@pytest.mark.parametrize("of_hidden", [0, 1, None])
@pytest.mark.parametrize("expected", [(0.05, 8), (8, 250)])
def test_an_interval_of_strata_covers_whatever_was_not_seen(hidden, of_hidden, expected):
    """A coverage of 94.3 %, Wilson's own for few expected dirty samples, in 20,000 draws.

    It falls below 93.5 % by chance once in 10^6.
    """
    trials, draws = 512, 20_000
    rng = np.random.default_rng([7, int(100 * hidden), expected[1]])
    fraction = np.exp(rng.uniform(*np.log(expected), (draws, 1))) / trials
    unseen = rng.random((draws, trials)) < hidden
    dirty = (rng.random((draws, trials)) < fraction) & ~unseen
    changes = (dirty[:, 1:] != dirty[:, :-1]).sum(axis=1).tolist()
    curve = vector(dirty.sum(axis=1), unseen.sum(axis=1), trials, changes=changes).curve()
    share = fraction[:, 0] if of_hidden is None else of_hidden
    truth = (1 << 40) * (hidden * share + (1 - hidden) * fraction[:, 0])
    assert np.mean((curve.low <= truth) & (truth <= curve.high)) >= 0.935


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
