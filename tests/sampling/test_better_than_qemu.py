"""Profile fast against profile qemu, at equal CPU time per pass. No clock: costs are a parameter.

Guests are simulated: which pages are dirty is drawn from the writer's own law. What a profile then
estimates has, given these pages, a standard error that is known exactly; so the comparison has no
Monte Carlo noise, and a second test checks by drawing real plans that the exact formula is right.

COST_RATIO is the time of QEMU's own loop (XXH64, no prefetch) over that of XXH3 with prefetch, per
cold page. `bench/pass.py` and `pysampler bench` print it for a machine; the claim holds from 2.8 up.
"""

import functools
import math

import numpy as np
import pytest
from scipy import stats

from pysampler.sampling.plan import PROFILES, draw_plan
from pysampler.units import GIB
from pysampler.validation.theory import hot_cold, uniform, zipf
from pysampler.vector.intervals import stratified, wilson

pytestmark = pytest.mark.statistics

QEMU = PROFILES["qemu"]
FAST = PROFILES["fast"]
COST_RATIO = FAST.sample_pages / QEMU.sample_pages
N_PAGES = 1 << 18
SEEDS = 240


def one_group_after_another(writer, rng):
    """Each page's chance to be written, groups as they come: hot pages lie together."""
    chances = np.repeat(writer.chances, writer.sizes.astype(int))
    return np.roll(chances, int(rng.integers(len(chances))))


def anywhere(writer, rng):
    return rng.permutation(np.repeat(writer.chances, writer.sizes.astype(int)))


# name: (writer, where its pages lie, writes per page)
GUESTS = {
    "uniform": (uniform(N_PAGES), one_group_after_another, 0.2),
    "hot pages together": (hot_cold(N_PAGES), one_group_after_another, 0.3),
    "zipf in order": (zipf(N_PAGES), one_group_after_another, 0.7),
    "zipf anywhere": (zipf(N_PAGES), anywhere, 0.7),
}


@functools.cache
def dirty_bits(name, seed):
    """A guest's dirty pages, 32 KiB: several tests look at the same guests."""
    writer, place, load = GUESTS[name]
    rng = np.random.default_rng([seed, 31])
    return np.packbits(rng.random(N_PAGES) < -np.expm1(-place(writer, rng) * (load * N_PAGES)))


def dirty_pages(name, seed):
    return np.unpackbits(dirty_bits(name, seed)).view(bool)


def exact_of_qemu(dirty, n):
    """Mean and standard error of N k / n, drawn with replacement from all pages but the last."""
    fraction = dirty[:-1].mean()
    return fraction * len(dirty), len(dirty) * math.sqrt(fraction * (1 - fraction) / n)


def exact_of_strata(dirty, n):
    """The same for one page of each stratum: a sum of n independent indicators."""
    edges = np.arange(n + 1) * len(dirty) // n
    fractions = np.diff(np.concatenate([[0], np.cumsum(dirty)])[edges]) / np.diff(edges)
    scale = len(dirty) / n
    return scale * fractions.sum(), scale * math.sqrt((fractions * (1 - fractions)).sum())


# The largest standard error allowed, as a share of the qemu profile's.
LIMITS = {
    "uniform": 0.6,
    "hot pages together": 0.5,
    "zipf in order": 0.6,
    "zipf anywhere": 0.6,
}


@pytest.mark.parametrize("n_qemu", [512, 4096])
@pytest.mark.parametrize("name", GUESTS)
def test_the_standard_error_is_as_much_smaller_as_promised(name, n_qemu):
    n_fast = round(n_qemu * COST_RATIO)
    biases, ratios = [], []
    for seed in range(SEEDS):
        dirty = dirty_pages(name, seed)
        _, se_qemu = exact_of_qemu(dirty, n_qemu)
        mean, se_fast = exact_of_strata(dirty, n_fast)
        ratios.append(se_fast / se_qemu)
        biases.append(mean / dirty.sum() - 1)
    # Over guests; no page is drawn at random here, so that this cannot alarm falsely.
    assert math.sqrt(np.mean(np.square(ratios))) <= LIMITS[name]
    assert abs(np.mean(biases)) < 0.002
    assert max(np.abs(biases)) < 0.002


@pytest.mark.parametrize("name", GUESTS)
@pytest.mark.parametrize(
    ("profile", "exact"), [(QEMU, exact_of_qemu), (FAST, exact_of_strata)], ids=["qemu", "fast"]
)
def test_real_plans_have_the_exact_mean_and_standard_error(name, profile, exact):
    # False alarms: 1e-5 for the mean, 2e-6 for the variance, for each of eight cases.
    dirty = dirty_pages(name, 1)
    estimates = []
    for seed in range(1000):
        plan = draw_plan([GIB], profile=profile, sample_pages=profile.sample_pages, seed=seed)
        estimates.append(dirty[plan.vfns[0].astype(np.intp)].mean() * N_PAGES)
    mean, se = exact(dirty, profile.sample_pages)
    assert abs(np.mean(estimates) - mean) < 4.42 * se / math.sqrt(len(estimates))
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], len(estimates) - 1) / (len(estimates) - 1)
    assert low < np.var(estimates, ddof=1) / se**2 < high


def intervals_of_strata(dirty, sample_pages, seed):
    plan = draw_plan([GIB], profile=FAST, sample_pages=sample_pages, seed=seed)
    found = dirty[np.sort(plan.vfns[0]).astype(np.intp)]
    changes = np.count_nonzero(found[1:] != found[:-1])
    return stratified(found.sum(), changes, len(found), N_PAGES)


@pytest.mark.parametrize("sample_pages", [FAST.sample_pages, 4097])
@pytest.mark.parametrize("name", GUESTS)
def test_intervals_of_strata_cover_94_to_96_5_percent(name, sample_pages):
    # 6000 plans: the share that covers has a standard deviation of 0.28 %, so that a true 95 %
    # falls out of the bounds with a chance of 2e-4.
    covered = 0
    for guest in range(60):
        dirty = dirty_pages(name, guest)
        truth = dirty.mean()
        for seed in range(100):
            low, high = intervals_of_strata(dirty, sample_pages, seed * 1000 + guest)
            covered += bool(low <= truth <= high)
    assert 0.94 <= covered / 6000 <= 0.965


def test_wilson_would_cover_too_much_where_hot_pages_lie_together():
    # Why strata have an interval of their own; the chance of a false alarm is below 1e-9.
    dirty = dirty_pages("hot pages together", 0)
    covered = 0
    for seed in range(1000):
        plan = draw_plan([GIB], profile=FAST, sample_pages=1536, seed=seed)
        low, high = wilson(dirty[plan.vfns[0].astype(np.intp)].sum(), 1536)
        covered += bool(low <= dirty.mean() <= high)
    assert covered > 980
