"""QEMU's loop in C: what it does to known guests, its properties, and the real migrations."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from known_guests import GIB_PAGES, guest, guest_of, in_order, uniform

from pysampler import Measurement, Precopy, core, predict
from pysampler.errors import FormatError, UsageError
from pysampler.prediction.curve import Component, DirtyCurve
from pysampler.prediction.ensemble import assemble
from pysampler.prediction.evaluate import evaluate
from pysampler.prediction.host import set_up
from pysampler.prediction.precopy_model import migrate
from pysampler.prediction.prediction import PUBLISHED_BANDWIDTHS, PUBLISHED_LIMITS_MS
from pysampler.prediction.records import read_migrations

GOLDEN = Path(__file__).parents[1] / "golden"
VECTOR = Measurement.from_json((GOLDEN / "vector-32gib-memcached.json").read_text())
RECORDS = (GOLDEN / "migrations-qemu10.jsonl").read_bytes().splitlines()


def one(ensemble, bandwidth, limit, **members):
    return migrate(ensemble, Precopy(**members), [(bandwidth, limit)])[0, 0]


def test_a_clean_guest_takes_one_round_and_the_time_of_its_bytes():
    outcome = one(guest(), 400e6, 1, link=2e9)
    assert outcome["converged"]
    assert outcome["iterations"] == 1
    assert outcome["sent_bytes"] == pytest.approx(GIB_PAGES * 4104, rel=1e-3)
    assert outcome["total_ms"] == pytest.approx(1000 * GIB_PAGES * 4104 / 400e6, abs=101)


def test_what_is_left_below_the_threshold_is_sent_in_the_last_pass():
    # 300 ms of the bandwidth remain for the link, which carries five times as much.
    outcome = one(guest(), 400e6, 300, link=2e9)
    expected = 1000 * GIB_PAGES * 4104 / 400e6 - 300 + 60
    assert outcome["total_ms"] == pytest.approx(expected, abs=101)


def test_a_zero_page_costs_nine_bytes():
    outcome = one(guest(nonzero=0.001, zero=GIB_PAGES), 400e6, 300)
    assert outcome["sent_bytes"] == pytest.approx(9 * GIB_PAGES, abs=70_000)


def test_without_zero_page_detection_a_zero_page_costs_a_page():
    outcome = one(guest(nonzero=0.001, zero=GIB_PAGES), 400e6, 300, zero_pages="none")
    assert outcome["sent_bytes"] == pytest.approx(4104 * GIB_PAGES, rel=1e-3)


def test_an_unlimited_downtime_ends_after_the_first_window():
    outcome = one(guest(uniform(0.5, 1)), 100e6, None, link=2e9)
    assert outcome["converged"]
    assert outcome["total_ms"] < 1000


def test_a_last_pass_that_outlasts_the_deadline_does_not_converge():
    in_time, late = (
        one(guest(), 100e6, None, deadline_ms=deadline) for deadline in (12_000, 9_000)
    )
    assert in_time["total_ms"] == late["total_ms"] == pytest.approx(10_760, rel=0.01)
    assert (in_time["converged"], late["converged"]) == (1, 0)


def test_a_writer_faster_than_the_link_never_ends():
    outcome = one(guest(uniform(0.9, 0.5)), 100e6, 300)
    assert not outcome["converged"]


def test_the_last_pass_gets_the_link():
    # 10 MB remain; they take 100 ms at the bandwidth and 5 at the link.
    slow, fast = (one(guest(uniform(0.05, 1e3)), 100e6, 300, link=link) for link in (None, 2e9))
    assert slow["downtime_ms"] > 3 * fast["downtime_ms"]


def test_latency_is_part_of_the_downtime():
    near, far = (one(guest(uniform(0.05, 100)), 1e9, 300, latency_ms=ms) for ms in (0, 40))
    assert far["downtime_ms"] - near["downtime_ms"] == pytest.approx(40, abs=10)


def test_multifd_pages_cost_less_than_their_headers_would():
    classic, packets = (one(guest(), 1e9, 300, multifd=multifd) for multifd in (False, True))
    assert packets["sent_bytes"] == pytest.approx(classic["sent_bytes"], rel=0.002)
    assert packets["sent_bytes"] != classic["sent_bytes"]


def test_multifd_sends_a_packet_of_each_channel_beyond_the_limit_of_each_window():
    classic, packets = (
        one(guest(), 5e7, 10, link=2e9, multifd=multifd) for multifd in (False, True)
    )
    # 5 MB a window are 9.5 packets: 10 and 2 of them are sent, or 38.07 buffers of 32 pages, so 39.
    assert packets["total_ms"] / classic["total_ms"] == pytest.approx(
        39 * 32 / (12 * 128), rel=0.01
    )


def test_without_its_channels_multifd_finds_no_zero_pages():
    nothing = guest(nonzero=0.001, zero=GIB_PAGES)
    legacy, alone, channels = (
        one(nothing, 400e6, 300, **members)["sent_bytes"]
        for members in ({}, {"zero_pages": "multifd"}, {"multifd": True})
    )
    assert alone == legacy
    assert channels == pytest.approx(legacy * 8 / 9, rel=0.01)


def test_a_shorter_limit_than_one_that_fails_is_not_run():
    grid = [(150e6, limit) for limit in (None, 9000.0, 3000.0, 60.0, 50.0)]
    ensemble, precopy = guest(uniform(0.9, 1)), Precopy(deadline_ms=60_000)
    outcomes = migrate(ensemble, precopy, grid, [-1, 0, 1, 2, -1])[0]
    assert outcomes["converged"].tolist() == [1, 1, 0, 0, 0]
    assert outcomes[3] == outcomes[2]
    assert outcomes[4]["sent_bytes"] != outcomes[3]["sent_bytes"]


@pytest.mark.parametrize("rate", [100e6, 300e6, 5e9])
def test_a_limit_that_changes_nothing_is_not_run(rate):
    limits = list(np.geomspace(8000, 5, 200))
    ensemble, precopy = guest(uniform(0.3, 1), in_order(0.2, 30), members=8), Precopy(link=2e9)
    grid = [(rate, limit) for limit in limits]
    each, reused = (
        migrate(ensemble, precopy, grid, cells) for cells in (None, [-1, *range(len(limits) - 1)])
    )
    ended = each["converged"] > 0
    # One that fails makes all shorter ones fail; the others are what they are when run alone.
    np.testing.assert_array_equal(reused["converged"] > 0, np.minimum.accumulate(ended, axis=1))
    same = reused["converged"] > 0
    for name in ("total_ms", "downtime_ms", "sent_bytes", "iterations"):
        np.testing.assert_allclose(reused[name][same], each[name][same], rtol=1e-9)
    assert (reused["same_above_ms"][:, 1:] == reused["same_above_ms"][:, :-1]).mean() > 0.3
    assert (reused["same_above_ms"][same] < np.broadcast_to(limits, same.shape)[same]).all()


@pytest.mark.parametrize("longer_limit_cells", [[0, 0], [1, -1], [-1, 7], [-1, 0]])
def test_a_longer_limit_that_is_none_is_refused(longer_limit_cells):
    with pytest.raises(OSError, match="ps_precopy_grid"):
        grid = [(1e8, 100.0), (1e8, 200.0)]
        migrate(guest(uniform(0.9, 1)), Precopy(), grid, longer_limit_cells)
    with pytest.raises(OSError, match="ps_precopy_grid"):
        migrate(guest(uniform(0.9, 1)), Precopy(), [(1e8, 100.0), (2e8, 50.0)], [-1, 0])


def test_dirty_logging_slows_the_guest_and_so_the_dirtying():
    free, logged = (
        one(guest(uniform(0.9, 2)), 600e6, 500, logging_us=us, link=2e9) for us in (0, 5)
    )
    assert logged["sent_bytes"] < free["sent_bytes"]


def test_a_sequential_writer_dirties_a_straight_line():
    lap = Component(GIB_PAGES / 2, 1 / 13.1, core.ComponentKind.SEQUENTIAL)
    ensemble = guest(lap, members=16)
    outcomes = migrate(ensemble, Precopy(link=2e9), [(52_428_800.0, 1000.0)])[:, 0]
    # The bulk takes 20 s, so each page is dirty; 10,000 of 12,800 pages a second are dirtied again.
    assert (outcomes["converged"] == 1).all()
    assert np.ptp(outcomes["total_ms"]) > 0  # where the writer is, the vector does not tell


def test_a_burst_that_is_over_lets_the_migration_end():
    ensemble = guest(uniform(0.4, 1.0), members=8)
    steady = migrate(ensemble, Precopy(link=2e9), [(300e6, 200.0)])
    ensemble.guests["burst_period_ms"], ensemble.guests["burst_on_ms"] = 4000, 400
    bursty = migrate(ensemble, Precopy(link=2e9), [(300e6, 200.0)])
    assert steady["converged"].mean() < bursty["converged"].mean() == 1


def test_interpolated_points_are_migrated_as_well():
    curve = DirtyCurve((), None, (1.0, 10.0), (1e4, 5e4), GIB_PAGES, 0, 0.0, 1)
    measurement = Measurement(4096, (1000,), (0,), 1, 0, GIB_PAGES)
    ensemble = assemble(curve, [curve], measurement, np.random.default_rng(0))
    assert one(ensemble, 400e6, 300)["converged"]


def test_the_rounds_are_those_of_the_migration():
    ensemble = guest(uniform(0.5, 10))
    precopy = Precopy(link=2e9)
    cells = precopy.cells([(200e6, 300.0)])
    outcome, rounds = core.precopy_rounds(
        precopy.parameters(4096), ensemble.arrays, cells, 1000
    )  # fmt: skip
    assert len(rounds) == outcome["iterations"][0]
    assert (np.diff(rounds["now_ms"][1:]) > 0).all()
    assert outcome["total_ms"][0] == one(ensemble, 200e6, 300.0, link=2e9)["total_ms"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.001, 0.5), st.floats(0.05, 100), st.sampled_from([0, 1])), max_size=2
    ),
    st.floats(0, 0.9),
    st.sampled_from([2e7, 1e8, 1e9]),
)
def test_nothing_breaks_whatever_the_guest(components, zero, bandwidth):
    ensemble = guest(
        *(Component(m * GIB_PAGES, 1 / s, core.ComponentKind(kind)) for m, s, kind in components),
        nonzero=GIB_PAGES,
        zero=zero * GIB_PAGES,
        members=3,
    )
    outcomes = migrate(
        ensemble, Precopy(deadline_ms=600_000), [(bandwidth, 50.0), (bandwidth, None)]
    )
    assert np.isfinite(outcomes["total_ms"]).all()
    assert (outcomes["sent_bytes"] > 0).all()
    assert (outcomes["downtime_ms"] <= outcomes["total_ms"]).all()
    # What is sent is at most what the link carries, and one buffer of each window.
    carried = outcomes["total_ms"] * (bandwidth / 1000 + 131_328 / 100) + 400_000
    assert (outcomes["sent_bytes"] <= carried).all()


@pytest.fixture(scope="module")
def published_grid():
    return predict(VECTOR)


def cells_of(prediction):
    return {(cell.bandwidth, cell.downtime_limit_ms or math.inf): cell for cell in prediction.cells}


def test_the_cell_that_was_published_as_48_s_is_uncertain(published_grid):
    cell = cells_of(published_grid)[5 * 2**27, 125]
    assert 0.25 < cell.p_converge < 0.75
    assert cell.total_ms_interval[1] is None


def test_each_median_lies_in_its_interval(published_grid):
    for cell in published_grid.cells:
        low, high = (math.inf if end is None else end for end in cell.total_ms_interval)
        assert low <= (cell.total_ms or math.inf) <= high


def test_the_same_seed_gives_the_same_prediction():
    first, second = (predict(VECTOR, "5Gbps", "300ms", members=20) for _ in range(2))
    assert first == second
    assert first != predict(VECTOR, "5Gbps", "300ms", members=20, seed=1)


@pytest.mark.parametrize("zero_pages", [0, VECTOR.n_zero_pages])
@pytest.mark.parametrize("factor", [2, 8, 64])
def test_memory_and_bandwidth_scale_together(zero_pages, factor):
    small = dataclasses.replace(VECTOR, n_zero_pages=zero_pages)
    large = dataclasses.replace(small, n_total_pages=small.n_total_pages * factor)
    grids = (
        predict(
            vector,
            [rate * k for rate in PUBLISHED_BANDWIDTHS],
            PUBLISHED_LIMITS_MS,
        ).cells
        for vector, k in ((small, 1), (large, factor))
    )
    for cell, other in zip(*grids, strict=True):
        assert other.p_converge == pytest.approx(cell.p_converge, abs=0.01)
        # Not exactly: a window ends with a buffer of 128 KiB, which next to the boundary tells.
        within = 0.002 if cell.p_converge > 0.95 else 0.03
        expected = pytest.approx(cell.total_ms or math.inf, rel=within)
        assert (other.total_ms or math.inf) == expected


def test_reading_a_zero_page_takes_its_time():
    nothing = guest(nonzero=1000, zero=GIB_PAGES)
    fast, slow = (
        one(nothing, 400e6, 300, link=2e9, zero_page_us=us)["total_ms"] for us in (0.0, 2.0)
    )
    assert fast < 20  # 9 bytes each, and the rest of a window
    assert slow == pytest.approx(fast + GIB_PAGES * 2e-3, rel=0.02)


@pytest.mark.parametrize("factor", [2, 8, 1000])
def test_the_loop_itself_has_no_scale(factor):
    """Only the host's times and buffers have a size; scaled with the guest, they change nothing."""
    ensemble = guest(uniform(0.2, 2), uniform(0.3, 30), zero=GIB_PAGES / 2, members=4)
    larger = guest(uniform(0.2, 2), uniform(0.3, 30), zero=GIB_PAGES / 2, members=4)
    for pages in ("nonzero_pages", "zero_pages"):
        larger.guests[pages] *= factor
    larger.components["pages"] *= factor
    precopy = Precopy(zero_page_us=0.5).parameters(4096)
    scaled = dict(precopy, zero_page_ms=precopy["zero_page_ms"] / factor)
    for size in ("flush_bytes", "device_bytes"):
        scaled[size] *= factor
    grid = [(b, limit) for b in (1e8, 2e8, 8e8) for limit in (50.0, 300.0, None)]
    outcomes, of_larger = (
        core.precopy_grid(
            with_these, one.arrays, Precopy(link=2e9 * k).cells([(b * k, limit) for b, limit in grid]),
        )
        for with_these, one, k in ((precopy, ensemble, 1), (scaled, larger, factor))
    )  # fmt: skip
    assert (outcomes["converged"] == of_larger["converged"]).all()
    assert 0 < outcomes["converged"].mean() < 1
    np.testing.assert_allclose(of_larger["total_ms"], outcomes["total_ms"], rtol=1e-3)


def test_real_migrations_are_predicted_better_than_by_the_published_model():
    scores = {(s.model, s.vector): s for s in evaluate(read_migrations(RECORDS), members=60)}
    for name in ("vector", "vector-512"):
        ours, theirs = scores["qemu", name], scores["published", name]
        assert np.median(ours.errors) < np.median(theirs.errors)
        assert ours.n_bad <= theirs.n_bad
        assert ours.brier < theirs.brier
    assert np.median(scores["qemu", "vector"].errors) < 0.02
    assert scores["qemu", "vector"].brier < 0.05
    assert scores["qemu", "vector"].n_bad == 0


@pytest.mark.statistics
def test_migrations_that_the_model_was_not_made_with_are_predicted_as_well():
    recorded = (GOLDEN / "migrations-recorded.jsonl").read_bytes().splitlines()
    scores = {(s.model, s.vector): s for s in evaluate(read_migrations(recorded))}
    for name in ("vector", "vector-512"):
        ours, theirs = scores["qemu", name], scores["published", name]
        assert np.median(ours.errors) < np.median(theirs.errors)
        assert ours.n_bad < theirs.n_bad
        assert ours.brier < 0.05
        assert 0.8 < ours.coverage < 0.97
    assert np.median(scores["qemu", "vector"].errors) < 0.011
    assert np.quantile(scores["qemu", "vector"].errors, 0.9) < 0.05


def test_migrations_with_multifd_are_predicted_as_such():
    recorded = (GOLDEN / "migrations-multifd.jsonl").read_bytes().splitlines()
    ours = evaluate(read_migrations(recorded), precopy=Precopy(link=2.4e9))[0]
    assert np.median(ours.errors) < 0.03
    assert ours.n_bad == 0


def test_other_numbers_of_channels_are_refused():
    record = json.loads((GOLDEN / "migrations-multifd.jsonl").read_bytes().splitlines()[0])
    record["config"]["multifd-channels"] = 4
    with pytest.raises(FormatError, match=r"line 1: multifd-channels: 4; the model knows"):
        read_migrations([json.dumps(record).encode()])


@pytest.mark.parametrize(("name", "p90"), [("qemu10", 0.012), ("recorded", 0.02)])
def test_the_loop_agrees_with_real_migrations_of_a_known_guest(name, p90):
    records = (GOLDEN / f"migrations-{name}.jsonl").read_bytes().splitlines()
    migrations = read_migrations(records)
    errors = []
    for migration, precopy in zip(migrations, set_up(migrations, Precopy()), strict=True):
        if migration.guest is None:  # one that bursts
            continue
        ensemble = guest_of(migration.guest, members=32)
        cell = (migration.bandwidth, migration.downtime_limit_ms)
        outcomes = migrate(ensemble, precopy, [cell])[:, 0]
        assert (np.median(outcomes["converged"]) > 0.5) == migration.converged, migration.title
        if migration.converged:
            errors.append(abs(np.median(outcomes["total_ms"]) / migration.total_ms - 1))
    assert np.median(errors) < 0.004
    assert np.quantile(errors, 0.9) < p90


@pytest.mark.parametrize(
    "members",
    [{"link": 0.0}, {"deadline_ms": math.nan}, {"latency_ms": -1}, {"zero_pages": "some"}],
)
def test_a_migration_that_cannot_be_is_refused(members):
    with pytest.raises(UsageError, match=next(iter(members))):
        Precopy(**members)


def test_arrays_of_another_shape_never_reach_c():
    ensemble = guest(uniform(0.5, 1))
    precopy = Precopy().parameters(4096)
    cells = Precopy().cells([(1e9, 300.0)])
    with pytest.raises(ValueError, match="of each guest"):
        core.PrecopyGuests(
            ensemble.guests, ensemble.components[:0], ensemble.knots_ms, ensemble.knots_share
        )
    with pytest.raises(TypeError, match="ps_precopy_component"):
        core.precopy_grid(
            precopy,
            core.PrecopyGuests(
                ensemble.guests, np.zeros((1, 1)), ensemble.knots_ms, ensemble.knots_share
            ),
            cells,
        )
    too_many = np.zeros((1, core.PRECOPY_COMPONENTS + 1), dtype=core.PRECOPY_COMPONENT)
    with pytest.raises(OSError, match="ps_precopy_grid"):
        core.precopy_grid(
            precopy,
            core.PrecopyGuests(ensemble.guests, too_many, ensemble.knots_ms, ensemble.knots_share),
            cells,
        )


@pytest.mark.parametrize("member", ["window_ms", "iteration_ms", "page_bytes", "flush_bytes"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_a_loop_that_would_not_end_is_refused(member, value):
    ensemble = guest(uniform(0.5, 1))
    precopy = Precopy().parameters(4096) | {member: value}
    with pytest.raises(OSError, match="ps_precopy_grid"):
        core.precopy_grid(
            precopy, ensemble.arrays, Precopy().cells([(1e9, 300.0)]),
        )  # fmt: skip
