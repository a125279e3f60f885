from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysampler.vector.schedule import periods_ms


def test_sixty_seconds_give_the_published_periods():
    assert periods_ms(60_000) == (
        125, 250, 375, 500, 750, 1000, 1500, 2000, 3000, 4000, 6000, 8000, 10_000, 15_000,
        20_000, 25_000, 30_000, 35_000, 40_000, 45_000, 50_000, 60_000,
    )  # fmt: skip


@pytest.mark.parametrize("calc_time", [50, 124, 125])
def test_a_short_calc_time_is_the_only_period(calc_time):
    assert periods_ms(calc_time) == (calc_time,)


@given(st.integers(50, 10_000_000))
def test_periods_rise_strictly_and_end_at_calc_time(calc_time):
    periods = periods_ms(calc_time)
    assert all(a < b for a, b in pairwise(periods))
    assert periods[-1] == calc_time


@given(st.integers(126, 60_000), st.integers(126, 60_000))
def test_a_longer_calc_time_keeps_all_but_the_last_period(one, other):
    short, long = sorted((periods_ms(one), periods_ms(other)), key=lambda periods: periods[-1])
    assert long[: len(short) - 1] == short[:-1]
