import itertools

import pytest

from pysampler.benchmark.harness import Timing, run_rounds, spread_of


class Work:
    """Work that notes its calls and takes invented time."""

    def __init__(self, clock, name, durations):
        self.clock, self.name = clock, name
        self.durations = itertools.cycle(durations)

    def __call__(self):
        self.clock.calls.append(self.name)
        self.clock.now += next(self.durations)


class Clock:
    def __init__(self):
        self.now, self.calls = 0, []

    def __call__(self):
        return self.now


def test_every_case_is_timed_once_a_round_in_an_order_of_its_own():
    clock = Clock()
    timings = [Timing(Work(clock, name, [100]), 4, clock) for name in "abcdef"]
    assert list(run_rounds(timings, 5)) == [1, 2, 3, 4, 5]
    rounds = [clock.calls[i : i + 6] for i in range(0, len(clock.calls), 6)]
    assert all(sorted(calls) == list("abcdef") for calls in rounds)
    assert len({tuple(calls) for calls in rounds}) > 3
    assert all(timing.ns_per_page == [25.0] * 5 for timing in timings)


def test_the_round_before_the_first_is_not_timed():
    clock = Clock()
    timing = Timing(Work(clock, "a", [9999, 8, 8]), 1, clock)
    list(run_rounds([timing], 2))
    assert timing.ns_per_page == [8, 8]


def test_what_prepares_the_work_comes_before_each_and_is_not_timed():
    clock = Clock()
    prepare = Work(clock, "prepare", [1000])
    timing = Timing(Work(clock, "work", [6]), 2, clock, prepare)
    list(run_rounds([timing], 2))
    assert clock.calls == ["prepare", "work"] * 3
    assert timing.ns_per_page == [3, 3]


def test_doing_it_once_keeps_nothing():
    clock = Clock()
    timing = Timing(Work(clock, "a", [12]), 4, clock)
    assert timing.once() == 3
    assert timing.ns_per_page == []


def test_a_case_that_varies_is_unstable_and_a_single_outlier_is_not():
    steady = Timing(lambda: None, 1, ns_per_page=[100.0] * 20 + [900.0])
    wild = Timing(lambda: None, 1, ns_per_page=[70.0, 100.0, 130.0] * 7)
    assert (steady.median, steady.unstable) == (100, False)
    assert (wild.spread, wild.unstable) == (pytest.approx(0.3), True)


def test_one_round_has_no_spread():
    assert Timing(lambda: None, 1, ns_per_page=[3.0]).spread == 0


def test_the_spread_is_half_the_interquartile_range_over_the_median():
    # Quartiles of 80, 90 .. 120 are 90 and 110.
    assert spread_of([80.0, 90.0, 100.0, 110.0, 120.0]) == pytest.approx(0.1)
    assert spread_of([7.0]) == 0
