"""More bandwidth or a longer downtime-limit never makes a migration later."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from known_guests import guest, in_order, uniform

from pysampler import Measurement, Precopy, predict
from pysampler.prediction.evaluate import read_migrations
from pysampler.prediction.monotone import RUNGS_MS, migrate_table
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
    for cell, other in itertools.permutations(predict(VECTOR).cells, 2):
        limit, other_limit = (each.downtime_limit_ms or math.inf for each in (cell, other))
        if cell.bandwidth >= other.bandwidth and limit >= other_limit:
            assert_no_worse(cell, other)


@pytest.fixture(scope="module")
def real_vectors():
    lines = (GOLDEN / "migrations-recorded.jsonl").read_bytes().splitlines()
    found = [(one.vectors["vector-512"], one.bandwidth) for one in read_migrations(lines)]
    return [*found, (VECTOR, 6e8)]


@settings(max_examples=150, deadline=None)
@given(
    which=st.integers(0, 10**6),
    factor=st.floats(0.4, 3),
    limit=st.floats(math.log(0.05), math.log(1e7)).map(math.exp),
    longer=st.floats(0, 2).map(lambda power: 10 ** (power**3 / 8)),
)
@example(which=0, factor=1.0, limit=2.5e6, longer=1.0)
def test_a_longer_limit_is_never_worse_in_another_call(real_vectors, which, factor, limit, longer):
    vector, bandwidth = real_vectors[which % len(real_vectors)]
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
    grid = list(itertools.product(bandwidths, every))
    alone = np.stack(
        [ends(migrate(ensemble, Precopy(link=2e9), [cell])[:, 0]) for cell in grid], axis=1
    ).reshape(4, len(bandwidths), len(every))
    for b, (i, limit) in itertools.product(range(len(bandwidths)), enumerate(limits)):
        below = alone[:, b:, every.index(limit) :].reshape(4, -1)
        np.testing.assert_array_equal(table[:, b, i], below.max(axis=1))


def test_limits_of_two_digits_are_looked_at_as_they_are():
    ensemble = guest(uniform(0.1, 1))
    for limit in [float(f"{digits}e1") for digits in range(10, 100)]:
        outcome = migrate_table(ensemble, Precopy(), [250e6], [limit])[0, 0, 0]
        own = migrate(ensemble, Precopy(), [(250e6, limit)])[0, 0]
        assert outcome["converged"]
        assert outcome["downtime_ms"] == own["downtime_ms"]


@pytest.mark.parametrize(
    ("limit", "looked_at"), [(333, 330), (109.9, 107.5), (126, 125), (0.01, 0.1), (5e6, 2e6)]
)
def test_others_are_looked_at_as_the_step_below(limit, looked_at):
    ensemble = guest(uniform(0.3, 1))
    one, other = (migrate_table(ensemble, Precopy(), [250e6], [x]) for x in (limit, looked_at))
    assert one == other


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
