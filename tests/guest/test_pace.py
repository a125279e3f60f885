"""The pace, with an invented clock."""

import pytest
from guest_pace import Pace, Throttle
from hypothesis import given, settings
from hypothesis import strategies as st

from pysampler.core import THROTTLE_ASLEEP_NS as ASLEEP_NS
from pysampler.core import THROTTLE_RUN_NS as RUN_NS

MS = 1_000_000
RATES = st.integers(1, 10**9)
NEAR_MS = 4  # gaps up to here are made good at once


@settings(deadline=None)
@given(RATES, st.lists(st.integers(MS, NEAR_MS * MS), min_size=1, max_size=200))
def test_a_vcpu_that_comes_in_time_keeps_its_rate_to_a_write(rate, gaps):
    pace, now, writes = Pace(rate), 0, 0
    for gap in gaps:
        now += gap
        writes += pace.due(now)
    assert writes == rate * now // 10**9


@settings(deadline=None)
@given(RATES, st.lists(st.integers(0, 100 * MS), min_size=1, max_size=200))
def test_a_vcpu_is_never_ahead_of_its_rate(rate, gaps):
    pace, now, writes = Pace(rate), 0, 0
    for gap in gaps:
        now += gap
        writes += pace.due(now)
        assert writes <= rate * now // 10**9


@settings(deadline=None)
@given(RATES, st.integers(1, 10**12), st.lists(st.integers(MS, NEAR_MS * MS), max_size=200))
def test_a_late_vcpu_catches_up_a_quarter_faster_at_most(rate, absence, gaps):
    pace = Pace(rate)
    first = pace.due(absence)
    assert first <= 1 + rate * NEAR_MS * 5 // 4 // 1000
    now, writes = absence, first
    for gap in gaps:
        now += gap
        writes += pace.due(now)
    missed = min(absence, Pace.CARRY_NS + 10**9 // rate + 1)
    looks = 1 + len(gaps)  # each may round up to a whole write
    assert writes <= looks + rate * (now - absence + NEAR_MS * MS) * 5 // 4 // 10**9
    assert writes <= rate * (now - absence + missed) // 10**9


@settings(deadline=None)
@given(st.integers(1000, 10**9))
def test_a_short_absence_is_made_good_in_full(rate):
    pace, now, writes = Pace(rate), 0, 0
    for gap in [Pace.CARRY_NS, *[MS] * 100]:
        now += gap
        writes += pace.due(now)
    assert writes == rate * now // 10**9


@settings(deadline=None)
@given(st.integers(1000, 10**9), st.integers(2, 1000))
def test_of_a_long_absence_the_most_is_lost(rate, seconds):
    pace, now, writes = Pace(rate), seconds * 10**9, 0
    writes += pace.due(now)
    for _ in range(1000):
        now += MS
        writes += pace.due(now)
    assert writes <= rate * (1000 * MS + Pace.CARRY_NS + 10**9 // rate + 1) // 10**9


# ---- throttle ----


def sleep_of(percentage):
    return round(RUN_NS * percentage / (100 - percentage))


def replay(rate, lag_ns, percentage, ns, look=MS):
    """Return the writes of a vCPU under a throttle that looks each `look` ns and writes at once."""
    pace, throttle = Pace(rate, lag_ns), Throttle()
    throttle.turn(0)
    throttle.set(sleep_of(percentage))
    now, writes, pace_ns = 0, pace.due(0), 0
    while now < ns:
        asleep, end = throttle.turn(now)
        if asleep:
            writes += pace.due(pace_ns)
            writes += pace.missed(end - now)
            # `due` is told of the time that the vCPU was there.
            now = end
        else:
            step = min(look, end - now)
            now += step
            pace_ns += step
            writes += pace.due(pace_ns)
    return writes


@pytest.mark.parametrize("percentage", [1, 20, 30, 50, 70, 80, 90, 99])
@pytest.mark.parametrize("lag_ms", [0, 5, 20, 50, 1000])
def test_a_throttled_vcpu_makes_up_for_its_lag_and_no_more(percentage, lag_ms):
    sleep = sleep_of(percentage)
    cycles = 50
    writes = replay(100_000, lag_ms * MS, percentage, cycles * (RUN_NS + sleep))
    given = cycles * (RUN_NS + min(sleep, lag_ms * MS))
    assert writes == pytest.approx(100_000 * given / 10**9, rel=0.02, abs=2)


def test_what_a_throttle_did_to_a_recorded_guest():
    # 30,000 writes a second that make up for 50 ms: unaffected at 80 %, 17,800 at 90 %.
    assert replay(30_000, 50 * MS, 80, 10**10) == pytest.approx(300_000, rel=0.01)
    assert replay(30_000, 50 * MS, 90, 10**10) == pytest.approx(178_000, rel=0.03)


@given(st.integers(1, 10**9), st.integers(0, 1000), st.lists(st.integers(0, 10**10), max_size=50))
def test_no_backlog_is_longer_than_the_lag(rate, lag_ms, absences):
    pace, left = Pace(rate, lag_ms * MS), 0
    for absence in absences:
        before, left = left, pace.missed(absence, left)
        assert before <= left <= rate * lag_ms // 1000


@given(st.integers(1, 10**9), st.lists(st.integers(0, 10 * MS), max_size=100))
def test_short_absences_add_up(rate, absences):
    pace = Pace(rate, 1000 * MS)
    assert sum(pace.missed(absence) for absence in absences) == rate * sum(absences) // 10**9


@given(st.integers(1, 10**10), st.lists(st.integers(1, 5 * MS), min_size=100, max_size=300))
def test_the_share_of_sleep_is_kept_by_a_vcpu_that_comes_late(sleep_ns, lates):
    throttle, now, slept, ran = Throttle(), 0, 0, 0
    throttle.turn(0)
    throttle.set(sleep_ns)
    for late in lates:
        asleep, end = throttle.turn(now)
        assert now < end <= now + max(sleep_ns, RUN_NS)
        step = end - now + late
        if asleep:
            slept += step
        else:
            ran += step
        now = end + late
    cycles = len(lates) // 2
    late_asleep = sum(lates)
    # Of each cycle it sleeps at least what was asked for, and runs no longer than it may.
    assert slept >= sleep_ns * cycles
    assert ran <= RUN_NS * (cycles + 1) + late_asleep - sum(lates[1::2])


def test_a_throttle_that_changes_takes_effect_at_once():
    throttle = Throttle()
    assert throttle.turn(5) == (False, 2**64 - 1)
    throttle.set(990 * MS)
    assert throttle.turn(6) == (False, 5 + RUN_NS)
    assert throttle.turn(5 + RUN_NS) == (True, 5 + RUN_NS + 990 * MS)
    throttle.set(1 * MS)  # it has slept longer than that already
    assert throttle.turn(105 * MS)[0] is False
    throttle.set(0)
    assert throttle.turn(106 * MS) == (False, 2**64 - 1)
    throttle.set(MS)  # and begins with a turn of running
    assert throttle.turn(107 * MS) == (False, 106 * MS + RUN_NS)


def test_a_throttle_may_sleep_for_good():
    throttle = Throttle()
    throttle.set(ASLEEP_NS)
    for now in (0, 1, RUN_NS, 2**63):
        assert throttle.turn(now) == (True, 2**64 - 1)
    throttle.set(MS)  # it has slept longer than that already
    assert throttle.turn(2**63 + 1) == (False, 2**63 + 1 + RUN_NS)
    throttle.set(ASLEEP_NS)
    assert throttle.turn(2**63 + 2) == (True, 2**64 - 1)
    throttle.set(100 * MS)
    assert throttle.turn(2**63 + 3) == (True, 2**63 + 2 + 100 * MS)


@given(st.integers(1, ASLEEP_NS), st.lists(st.integers(0, 2**63), max_size=30).map(sorted))
def test_a_turn_never_ends_before_now(sleep_ns, times):
    throttle = Throttle()
    throttle.set(sleep_ns)
    for now in times:
        asleep, end = throttle.turn(now)
        assert end > now
        assert asleep or end <= now + RUN_NS
