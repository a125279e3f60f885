"""More bandwidth or a longer downtime-limit never makes a migration later."""

import math
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from known_guests import GIB_PAGES, guest, in_order, uniform

from pysampler import Measurement, Precopy, predict
from pysampler.prediction.ensemble import build_ensemble
from pysampler.prediction.migrations import read_migrations
from pysampler.prediction.monotone import RUNGS_MS, migrate_table, run_as
from pysampler.prediction.precopy import MOST_DOWNTIME_MS, migrate

GOLDEN = Path(__file__).parents[1] / "golden"
VECTOR = Measurement.from_json((GOLDEN / "vector-32gib-memcached.json").read_text())


def ends(outcomes):
    return np.where(outcomes["converged"] > 0, outcomes["total_ms"], np.inf)


def assert_no_worse(cell, other):
    """`cell` has at least the bandwidth and the limit of `other`."""
    assert cell.p_converge >= other.p_converge
    assert (cell.total_ms or math.inf) <= (other.total_ms or math.inf)


def test_no_cell_of_the_published_grid_is_worse_than_one_that_asks_more():
    for cell, other in permutations(predict(VECTOR).cells, 2):
        limit, other_limit = (each.downtime_limit_ms or math.inf for each in (cell, other))
        if cell.bandwidth >= other.bandwidth and limit >= other_limit:
            assert_no_worse(cell, other)


@pytest.fixture(scope="module")
def real_guests():
    """Half a dozen real vectors of each kind of writer, next to their boundary, and the published."""
    lines = (GOLDEN / "migrations-recorded.jsonl").read_bytes().splitlines()
    found = [(one.vectors["vector-512"], one.bandwidth) for one in read_migrations(lines)[2::6]]
    return [*found, (VECTOR, 6e8)]


def test_a_longer_limit_is_never_later_of_any_guest(real_guests):
    # Each step between the rungs, and something between the steps.
    limits = [low + (high - low) * k / 20 for low, high in pairwise(RUNGS_MS) for k in range(20)]
    limits = [limit for limit in limits if 40 <= limit <= 4000]
    later = not_converging = 0
    for vector, bandwidth in real_guests:
        ensemble = build_ensemble(vector, 12, seed=0)
        table = migrate_table(ensemble, Precopy(link=2e9), [bandwidth], [*limits, None])[:, 0]
        assert (np.diff(np.nan_to_num(ends(table), posinf=1e12), axis=1) <= 0).all()
        converged = table["converged"] > 0
        assert (table["downtime_ms"][converged] > 0).all()
        alone = ends(migrate(ensemble, Precopy(link=2e9), [(bandwidth, x) for x in limits]))
        later += int((alone[:, 1:] > alone[:, :-1]).sum())
        not_converging += int((~converged).sum())
    # That is not so of the loop itself, and there are guests that do not converge.
    assert later > 100
    assert not_converging > 100


@settings(max_examples=100, deadline=None)
@given(
    which=st.integers(0, 10**6),
    factor=st.floats(0.4, 3),
    limit=st.floats(math.log(0.05), math.log(1e7)).map(math.exp),
    longer=st.floats(0, 2).map(lambda power: 10 ** (power**3 / 8)),
)
@example(which=0, factor=1.0, limit=2.5e6, longer=1.0)
def test_a_longer_limit_is_never_worse_in_another_call(real_guests, which, factor, limit, longer):
    vector, bandwidth = real_guests[which % len(real_guests)]
    short, long = (
        predict(vector, bandwidth * factor, each, link=2e9, members=30).cells[0]
        for each in (limit, limit * longer)
    )
    assert_no_worse(long, short)


@pytest.mark.parametrize("limit", [0.05, 7.3, 110, 125, 333, 2e6, 9e8, None])
def test_a_cell_does_not_depend_on_the_other_limits_of_its_table(limit):
    ensemble, rate = guest(uniform(0.3, 1), members=4), 250e6
    alone = migrate_table(ensemble, Precopy(link=2e9), [rate], [limit])[:, 0, 0]
    among = migrate_table(ensemble, Precopy(link=2e9), [rate], [1.7, limit, 20, 301, 4000, None])
    assert (among[:, 0, 1] == alone).all()


def test_a_cell_takes_as_long_as_the_latest_that_asks_less():
    ensemble = guest(uniform(0.3, 1), members=4)
    bandwidths, limits = list(np.linspace(100e6, 900e6, 23)), [20.0, 50.0, 125.0, 300.0, 1000.0]
    table = ends(migrate_table(ensemble, Precopy(link=2e9), bandwidths[::-1], limits))[:, ::-1]
    every = [limit for limit in RUNGS_MS if limit >= 20] + [None]
    grid = list(product(bandwidths, every))
    alone = np.stack(
        [ends(migrate(ensemble, Precopy(link=2e9), [cell])[:, 0]) for cell in grid], axis=1
    ).reshape(4, len(bandwidths), len(every))
    for b, (i, limit) in product(range(len(bandwidths)), enumerate(limits)):
        below = alone[:, b:, every.index(limit) :].reshape(4, -1)
        np.testing.assert_array_equal(table[:, b, i], below.max(axis=1))


def test_limits_of_two_digits_are_run_as_they_are():
    two_digits = [
        float(f"{digits}e{decade}") for decade in range(-2, 5) for digits in range(10, 100)
    ]
    assert [run_as(limit) for limit in two_digits] == pytest.approx(two_digits, rel=1e-12)
    assert [run_as(limit) for limit in RUNGS_MS] == list(RUNGS_MS)
    assert run_as(None) is None


@given(st.floats(math.log(0.1), math.log(MOST_DOWNTIME_MS)).map(math.exp))
def test_others_are_run_as_at_most_4_percent_less(limit):
    assert 0.96 * limit <= run_as(limit) <= limit


@pytest.mark.parametrize(("limit", "run"), [(0.01, 0.1), (333, 330), (109.9, 107.5), (5e6, 2e6)])
def test_a_limit_is_run_as_it_is_said_to_be(limit, run):
    assert run_as(limit) == run
    # What is written all the time just fits the limit that is run, with 1 % to spare.
    bandwidth = 2e9 if limit < 1000 else 10 * 32 * 4104  # a send buffer in each window
    hot = 0.99 * bandwidth * run / 1000 / 4096 / GIB_PAGES
    ensemble = guest(uniform(hot, 1e-7), nonzero=(hot + 1) * GIB_PAGES)
    found, as_run = (
        migrate_table(ensemble, Precopy(link=4e9), [bandwidth], [each]) for each in (limit, run)
    )
    assert found == as_run
    assert as_run["converged"].all()
    less = migrate(ensemble, Precopy(link=4e9), [(bandwidth, 0.98 * run)])
    assert not less["converged"].any()


def test_the_rungs_rise_to_what_qemu_takes():
    assert list(RUNGS_MS) == sorted(set(RUNGS_MS))
    assert RUNGS_MS[-1] == MOST_DOWNTIME_MS


def test_a_sequential_writer_that_fails_with_more_fails_with_less():
    """The scan meets such a writer or misses it: then more bandwidth does harm at times."""
    ensemble, limits = guest(in_order(0.6, 8.5), members=20), [1000.0]
    bandwidths = [float(rate) for rate in range(68_000_000, 100_000_000, 800_000)]
    grid = [(rate, limits[0]) for rate in bandwidths]
    alone = ends(migrate(ensemble, Precopy(), grid))
    assert (alone[:, 1:] > alone[:, :-1]).any()
    table = ends(migrate_table(ensemble, Precopy(), bandwidths, limits))[:, :, 0]
    assert (table[:, 1:] <= table[:, :-1]).all()
    assert 0 < np.isfinite(table).mean() < 1
