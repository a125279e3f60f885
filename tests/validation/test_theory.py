"""Closed forms against the published table, against slow sums, and against simulated writers.

Monte Carlo tests compare a mean of R simulations with the closed form by |z| < 4.5 (false alarm 7e-6 each)
and a variance by its chi-square ends at 1e-6. Seeds are fixed, so a pass stays a pass.
"""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pysampler.errors import UsageError
from pysampler.validation import theory

pytestmark = pytest.mark.statistics

GOLDEN = Path(__file__).parents[1] / "golden" / "accuracy-3Mwps.csv"
CELLS = [
    (int(row["region_gib"]), int(row["calc_time_ms"]), int(row["theoretical_mib_s"]))
    for row in csv.DictReader(GOLDEN.read_text().splitlines())
]
REPEATS = 1500
PUBLISHED_WPS = 3_013_680  # the writer's speed at which all published cells come out exactly


def published_rate(size, seconds):
    """Return size (1 - (1 - 4096/size)^(t wps)) / t in MiB/s: the published theory."""
    pages = theory.uniform(size // 4096).after_writes(seconds * PUBLISHED_WPS).mean
    return theory.dirty_rate(pages, seconds)


def missed_change_odds(n_dirty, hash_bits=32):
    """Return the odds that at least one of ``n_dirty`` changed samples keeps its hash.

    A hash of b bits that behaves like a random function misses one change in 2^b.
    """
    return -math.expm1(n_dirty * math.log1p(-(2.0**-hash_bits)))


@pytest.mark.parametrize(("gib", "ms", "published"), CELLS)
def test_a_published_theoretical_cell_comes_out_exactly(gib, ms, published):
    assert round(published_rate(gib << 30, ms / 1000)) == published


def test_all_published_cells_are_there():
    assert len(CELLS) == 27


def agrees(samples, expected):
    mean, variance = expected
    n = len(samples)
    # A variance of zero leaves only rounding.
    assert abs(np.mean(samples) - mean) <= 4.5 * math.sqrt(variance / n) + 1e-9 * (1 + mean)
    if variance < 1e-9:
        assert np.var(samples) < 1e-9
        return
    low, high = stats.chi2.ppf([1e-6, 1 - 1e-6], n - 1) / (n - 1)
    assert low <= np.var(samples, ddof=1) / variance <= high


def simulate(rng, pages, writes):
    """Distinct pages of `writes` drawn pages, one by one, REPEATS times."""
    chances = np.repeat(pages.chances, pages.sizes.astype(int))
    edges = np.cumsum(chances)
    edges[-1] = 1.0
    return np.array(
        [len(np.unique(np.searchsorted(edges, rng.random(n), side="right"))) for n in writes]
    )


WRITERS = {
    "uniform": theory.uniform(997),
    "hot-cold": theory.hot_cold(997, 0.11, 0.87),
    "zipf": theory.zipf(997, 0.99),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("load", [0.13, 1.1, 4.3])
def test_a_counted_number_of_writes_is_met_by_simulation(name, load):
    rng = np.random.default_rng(20)
    writes = round(load * 997)
    found = simulate(rng, WRITERS[name], np.full(REPEATS, writes))
    agrees(found, WRITERS[name].after_writes(writes))


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("load", [0.13, 1.1, 4.3])
def test_poisson_writes_are_met_by_simulation(name, load):
    rng = np.random.default_rng(21)
    found = simulate(rng, WRITERS[name], rng.poisson(load * 997, REPEATS))
    agrees(found, WRITERS[name].after(load, 997))


@pytest.mark.parametrize("per_page", [1, 3, 7])
@pytest.mark.parametrize("writes", [0, 1, 5, 400, 2990, 8000])
def test_a_sweep_is_met_by_walking_through_its_pages(per_page, writes):
    n_pages = 997
    found = [
        len({(start + i) // per_page % n_pages for i in range(writes)}) for start in range(per_page)
    ]
    expected = theory.Sweep(n_pages, per_page).after_writes(writes)
    assert (np.mean(found), np.var(found)) == pytest.approx(expected)


@pytest.mark.parametrize("seconds", [0.03, 0.21, 0.3, 0.52, 0.7, 1.37])
def test_bursts_are_met_by_simulation(seconds):
    on, off, rate, n_pages = 0.31, 0.4, 2000.0, 499
    rng = np.random.default_rng(22)
    start = rng.random(REPEATS) * (on + off)
    steps = (np.arange(20_000) + 0.5) / 20_000 * seconds
    working = np.array([((s + steps) % (on + off) < on).mean() * seconds for s in start])
    writer = theory.uniform(n_pages)
    found = simulate(rng, writer, rng.poisson(working * rate))
    agrees(found, theory.Bursts(writer, on, off).after(seconds, rate))


def test_a_writer_that_never_pauses_has_no_bursts():
    writer = theory.hot_cold(9973)
    assert theory.Bursts(writer, 0.5, 0.0).after(1.7, 3000) == pytest.approx(
        writer.after(1.7, 3000)
    )


def test_a_sweep_that_bursts_is_linear_in_the_time_it_works():
    # Ten whole cycles: the phase does not matter.
    bursts = theory.Bursts(theory.Sweep(10**6), 0.25, 0.25)
    assert bursts.after(5.0, 1000) == pytest.approx((2500, 0))


@pytest.mark.parametrize("writes", [7, 100, 1000, 10_000])
def test_the_uniform_variance_is_that_of_all_occupancies_counted(writes):
    # The distribution itself, write by write: the chance that j pages are touched.
    n = 31
    chance = np.zeros(n + 1)
    chance[0] = 1.0
    for _ in range(writes):
        stay = chance * np.arange(n + 1) / n
        chance = stay + np.concatenate([[0.0], (chance * (1 - np.arange(n + 1) / n))[:-1]])
    j = np.arange(n + 1)
    mean = chance @ j
    expected = (mean, chance @ (j - mean) ** 2)
    assert theory.uniform(n).after_writes(writes) == pytest.approx(expected, rel=1e-7, abs=1e-10)


def test_the_uniform_variance_survives_its_cancellation_at_24_gib():
    n = 6 << 20
    load = 301_368 / n
    limit = n * math.exp(-load) * (1 - (1 + load) * math.exp(-load))
    assert theory.uniform(n).after_writes(301_368).variance == pytest.approx(limit, rel=1e-5)


@pytest.mark.parametrize("n_pages", [1, 2, 4096, 4097, 65_537, 1_000_003])
def test_grouped_zipf_ranks_give_what_all_ranks_give(n_pages):
    writer = theory.zipf(n_pages, 0.99)
    chances = np.arange(1, n_pages + 1.0) ** -0.99
    chances /= chances.sum()
    assert writer.n_pages == n_pages
    for writes in (1e3, 1e5, 1e7):
        exact = -np.expm1(-chances * writes).sum()
        assert writer.after(writes, 1.0).mean == pytest.approx(exact, rel=1e-7)


@given(
    st.sampled_from(
        [*WRITERS.values(), theory.Sweep(997, 3), theory.Bursts(WRITERS["zipf"], 0.2, 0.3)]
    ),
    st.floats(0, 1e3),
    st.floats(0, 1e3),
)
def test_distinct_pages_rise_with_time_and_end_at_all_pages(writer, one, other):
    early, late = sorted((one, other))
    first, second = writer.after(early, 531.0), writer.after(late, 531.0)
    assert 0 <= first.mean <= second.mean + 1e-6 <= writer.n_pages + 2e-6
    assert first.variance >= 0


@pytest.mark.parametrize("replacement", [True, False])
def test_the_spread_of_a_sampled_estimate_is_met_by_simulation(replacement):
    rng = np.random.default_rng(23)
    n_pages, n_sampled, writes = 1021, 257, 700
    writer = theory.uniform(n_pages)
    found = []
    for _ in range(REPEATS):
        dirty = np.zeros(n_pages, dtype=bool)
        dirty[rng.integers(0, n_pages, writes)] = True
        drawn = rng.choice(n_pages, n_sampled, replace=replacement)
        found.append(dirty[drawn].mean() * n_pages)
    distinct = writer.after_writes(writes)
    variance = theory.sampled_variance(distinct, n_pages, n_sampled, replacement=replacement)
    agrees(found, (distinct.mean, variance))


def test_the_spread_of_a_stratified_estimate_is_met_by_simulation():
    rng = np.random.default_rng(24)
    n_pages, n_sampled, writes = 1024, 128, 900
    writer = theory.hot_cold(n_pages, 0.125, 0.8)
    chances = np.repeat(writer.chances, writer.sizes.astype(int))
    found = []
    for _ in range(REPEATS):
        dirty = np.zeros(n_pages, dtype=bool)
        dirty[rng.choice(n_pages, writes, p=chances / chances.sum())] = True
        drawn = np.arange(n_sampled) * 8 + rng.integers(0, 8, n_sampled)
        found.append(dirty[drawn].mean() * n_pages)
    variance = theory.strata_variance(writer, writes, n_sampled)
    agrees(found, (writer.after_writes(writes).mean, variance))


def test_a_part_of_the_memory_that_is_written_makes_the_samples_in_it_random():
    # The published 1 GiB writer in a 32 GiB guest, saturated: 4.4 % at 512 samples per GiB.
    written = theory.Distinct(262_144.0, 0.0)
    variance = theory.sampled_variance(written, 32 * 262_144, 32 * 512)
    assert math.sqrt(variance) / written.mean == pytest.approx(0.0435, abs=5e-4)


@pytest.mark.parametrize(("hot_fraction", "hot_share"), [(0, 0.9), (1, 0.9), (0.1, 1.1), (-1, 0.5)])
def test_impossible_hot_pages_are_refused(hot_fraction, hot_share):
    with pytest.raises(UsageError, match="hot-fraction"):
        theory.hot_cold(100, hot_fraction, hot_share)


def test_a_truncated_hash_misses_as_few_changes_as_the_specification_says():
    assert missed_change_odds(16392) == pytest.approx(16392 / 2**32, rel=1e-5)
    assert missed_change_odds(16392, 64) < 1e-14
