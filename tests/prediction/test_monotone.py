"""More bandwidth or a longer downtime-limit never makes a migration later, whatever the table."""

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from known_guests import guest, in_order, uniform

from pysampler import Measurement, Precopy, predict
from pysampler.prediction import monotone
from pysampler.prediction.ensemble import build_ensemble
from pysampler.prediction.monotone import BANDWIDTH_AXIS, DOWNTIME_AXIS, migrate_table
from pysampler.prediction.precopy_model import UNLIMITED_MS, migrate
from pysampler.prediction.records import read_migrations
from pysampler.units import MAX_RATE

GOLDEN = Path(__file__).parents[1] / "golden"
VECTOR = Measurement.from_json((GOLDEN / "vector-32gib-memcached.json").read_text())


def ends(outcomes):
    return np.where(outcomes["converged"] > 0, outcomes["total_ms"], np.inf)


def later(times):
    """How many of the times are longer than the one before, along the last axis."""
    return int((times[..., 1:] > times[..., :-1]).sum())


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


@pytest.mark.statistics
@pytest.mark.parametrize("of", ["bandwidth", "limit"])
def test_more_is_never_later_of_any_guest(real_guests, of):
    loop_is_later = not_converging = 0
    for vector, bandwidth in real_guests:
        ensemble, precopy = build_ensemble(vector, 12, seed=0), Precopy(link=2e9)
        steps = np.exp(np.linspace(-0.5, 0.5, 150))  # between places and on none
        if of == "bandwidth":
            rates, limits = list(bandwidth * steps), [300.0]
        else:
            rates, limits = [bandwidth], [*(300.0 * steps**3), None]
        table = migrate_table(ensemble, precopy, rates, limits).reshape(12, -1)
        assert later(ends(table)) == 0
        assert (table["downtime_ms"][table["converged"] > 0] > 0).all()
        grid = [(rate, limit) for rate in rates for limit in limits]
        loop_is_later += later(ends(migrate(ensemble, precopy, grid)))
        not_converging += int((table["converged"] == 0).sum())
    # That is not so of the loop itself, and there are guests that do not converge.
    assert loop_is_later > 100
    assert not_converging > 100


@pytest.mark.statistics
@settings(max_examples=150, deadline=None)
@given(
    which=st.integers(0, 10**6),
    factor=st.floats(0.4, 3),
    limit=st.floats(math.log(0.05), math.log(1e7)).map(math.exp),
    rate_ratio=st.floats(0, 2).map(lambda power: 10 ** (power**3 / 8)),
    limit_ratio=st.floats(0, 2).map(lambda power: 10 ** (power**3 / 8)),
)
@example(which=0, factor=1.0, limit=2.5e6, rate_ratio=1.0, limit_ratio=1.0)
@example(which=22, factor=1.1, limit=125.0, rate_ratio=1.03, limit_ratio=1.0)
def test_more_is_never_worse_in_another_call(
    real_guests, which, factor, limit, rate_ratio, limit_ratio
):
    vector, bandwidth = real_guests[which % len(real_guests)]
    less, greater = (
        predict(vector, bandwidth * factor * rate, limit * time, link=2e9, members=30).cells[0]
        for rate, time in ((1, 1), (rate_ratio, limit_ratio))
    )
    assert_no_worse(greater, less)


@pytest.mark.parametrize("limit", [0.05, 7.3, 110, 125, 333, 2e6, 9e8, None])
@pytest.mark.parametrize("rate", [0.5, 101e6, 250e6, 9e14])
def test_a_cell_does_not_depend_on_the_others_of_its_table(rate, limit):
    ensemble, precopy = guest(uniform(0.3, 1), members=4), Precopy(link=2e9)
    alone = migrate_table(ensemble, precopy, [rate], [limit])[:, 0, 0]
    others = [1.7, limit, 20, 301, 4000, None]
    among = migrate_table(ensemble, precopy, [3e8, 99e6, rate, 252e6], others)
    assert (among[:, 2, 1] == alone).all()


def test_a_table_of_many_members_is_made_of_parts(monkeypatch):
    ensemble = build_ensemble(VECTOR, 20, seed=0)
    whole = migrate_table(ensemble, Precopy(), [3e8, 9e8], [300.0, 1000.0])
    monkeypatch.setattr(monotone, "RECORDS_AT_ONCE", 900)
    assert (migrate_table(ensemble, Precopy(), [3e8, 9e8], [300.0, 1000.0]) == whole).all()


def halved(axis, value, at):
    """Another way to the same: what is reached at a value of an axis, of the times `at` places."""
    wanted = min(max(math.log2(value / axis.least), 0), axis.octaves)
    octave = min(int(wanted), axis.octaves - 1)
    high = max(at(2**k * axis.least) for k in range(octave + 1, axis.octaves + 1))
    low, left, right = max(high, at(2**octave * axis.least)), octave, octave + 1
    while (right - left) * axis.steps > 1:
        middle = (left + right) / 2
        found = sorted((low, at(2**middle * axis.least), high))[1]
        if wanted >= middle:
            left, low = middle, found
        else:
            right, high = middle, found
    share = (wanted - left) * axis.steps
    if math.isinf(low):
        return high if share > 0.5 or share == 1 else low
    return low + share * (high - low)


@pytest.mark.parametrize("rate", [40e6, 87.3e6, 2**27, 411e6])
@pytest.mark.parametrize("limit", [0.2, 110, 250, 777])
def test_a_cell_is_what_halving_finds(rate, limit):
    ensemble, precopy = guest(uniform(0.2, 1), uniform(0.3, 40)), Precopy(link=2e9)

    def with_both(bandwidth, each):
        return ends(migrate(ensemble, precopy, [(bandwidth, each)]))[0, 0]

    def with_rate(bandwidth):
        return halved(DOWNTIME_AXIS, limit, lambda each: with_both(bandwidth, each))

    expected = halved(BANDWIDTH_AXIS, rate, with_rate)
    found = ends(migrate_table(ensemble, precopy, [rate], [limit]))[0, 0, 0]
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_table_is_near_what_the_loop_itself_does():
    ensemble, precopy = guest(uniform(0.3, 1), uniform(0.3, 40), members=4), Precopy(link=2e9)
    rates = list(np.geomspace(330e6, 3e9, 60))
    table = ends(migrate_table(ensemble, precopy, rates, [300.0]))[:, :, 0]
    loop = ends(migrate(ensemble, precopy, [(rate, 300.0) for rate in rates]))
    assert np.median(np.abs(table / loop - 1)) < 0.01
    assert np.abs(table - loop).max() < 250  # ms: two windows and a sync


@given(st.floats(math.log(1e-3), math.log(1e17)).map(math.exp))
@example(1.0)
@example(2.0**27)
@example(MAX_RATE)
def test_the_places_next_to_a_value_enclose_it(value):
    for axis in (BANDWIDTH_AXIS, DOWNTIME_AXIS):
        bisection = axis.bisection(value)
        low, high = axis.value(bisection.low), axis.value(bisection.high)
        inside = min(max(value, axis.value(0)), axis.value(axis.octaves * axis.steps))
        assert low <= inside * (1 + 1e-12)
        assert inside <= high * (1 + 1e-12)
        assert bisection.high - bisection.low <= 1
        assert low * 2 ** ((1 - bisection.nearness) / axis.steps) == pytest.approx(inside)
        places = [step.place for step in bisection.steps]
        for i, step in enumerate(bisection.steps):
            assert {step.higher, step.lower} - {None} <= set(places[:i])
            assert step.higher is None or step.higher > step.place


def test_the_octaves_of_125_ms_are_places_and_unlimited_is_the_last():
    for limit in (62.5, 125.0, 250.0, 1000.0):
        assert DOWNTIME_AXIS.value(DOWNTIME_AXIS.bisection(limit).low) == limit
    assert DOWNTIME_AXIS.value(DOWNTIME_AXIS.bisection(math.inf).low) >= UNLIMITED_MS
    assert (
        BANDWIDTH_AXIS.value(BANDWIDTH_AXIS.bisection(MAX_RATE).low) == BANDWIDTH_AXIS.most == 2**40
    )


def test_values_are_those_of_the_places_from_a_whole_octave_on():
    assert DOWNTIME_AXIS.values(10, 2e6)[0] == 125 / 16
    found = BANDWIDTH_AXIS.values(1000.0, 5000.0)
    assert found[::256] == [512, 1024, 2048, 4096]
    assert 4980 < found[-1] <= 5000


@pytest.mark.parametrize("rate", [12.5e6, 165195253.0, 1e9])
@pytest.mark.parametrize("limit", [5.0, 300.0, 5000.0, None])
def test_an_idle_guest_is_down_for_a_moment(rate, limit):
    """What is clipped is the time: the rest is not of a migration with quite another limit."""
    ensemble = guest(nonzero=3e6, zero=5e6, members=3)
    found = migrate_table(ensemble, Precopy(), [rate], [limit])[:, 0, 0]
    loop = migrate(ensemble, Precopy(), [(rate, limit)])[:, 0]
    assert found["iterations"].tolist() == loop["iterations"].tolist()
    np.testing.assert_allclose(found["sent_bytes"], loop["sent_bytes"], rtol=1e-4)
    if limit is None:
        np.testing.assert_allclose(found["downtime_ms"], loop["downtime_ms"], rtol=0.01)
    else:
        assert (found["downtime_ms"] < limit + 20).all()


@pytest.mark.statistics
def test_no_guest_is_down_for_longer_than_it_takes(real_guests):
    for vector, bandwidth in real_guests:
        ensemble = build_ensemble(vector, 12, seed=0)
        rates = list(bandwidth * np.geomspace(0.3, 30, 40))
        table = migrate_table(ensemble, Precopy(), rates, [50.0, 300.0, 3000.0, None])
        done = table["converged"] > 0
        assert (table["downtime_ms"] <= table["total_ms"])[done].all()
        for i, limit in enumerate((50.0, 300.0, 3000.0)):
            # The threshold is of the bandwidth, which the link has here, too; and stopping.
            assert (table["downtime_ms"][:, :, i][done[:, :, i]] < 1.6 * limit + 40).all()


def test_a_sequential_writer_that_fails_with_more_fails_with_less():
    """The scan meets such a writer or misses it: then more bandwidth does harm at times."""
    ensemble = guest(in_order(0.6, 8.5), members=20)
    bandwidths = [float(rate) for rate in range(68_000_000, 100_000_000, 800_000)]
    assert later(ends(migrate(ensemble, Precopy(), [(rate, 1000.0) for rate in bandwidths]))) > 0
    table = ends(migrate_table(ensemble, Precopy(), bandwidths, [1000.0]))[:, :, 0]
    assert later(np.nan_to_num(table, posinf=1e12)) == 0
    assert 0 < np.isfinite(table).mean() < 1
