"""The pace, with an invented clock."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pysampler.core import Pace

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
