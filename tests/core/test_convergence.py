# SPDX-License-Identifier: MIT
"""The arithmetic of slowing a guest down: as a real QEMU did it, and within its bounds."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysampler.core import (
    Aggression,
    AggressionTick,
    AutoConverge,
    DirtyLimitSleep,
    aggression_tick,
    dirty_limit_rate,
    dirty_limit_ring_full_us,
    dirty_limit_sleep,
    restraint_first,
    restraint_next,
    throttle_check,
    throttle_step,
)
from pysampler.qemu.migration import PARAMETERS

GOLDEN = Path(__file__).parents[1] / "golden" / "migration"
U64 = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 40), st.integers(0, 300))
DEFAULTS = {name: parameter.default for name, parameter in PARAMETERS.items()}


def recorded(name):
    """Return the records of a file, each under its name."""
    lines = (GOLDEN / name).read_text(encoding="utf-8").splitlines()
    return {record["name"]: record for record in map(json.loads, lines)}


STEPS = recorded("auto-converge-steps.jsonl")
LIMITS = recorded("dirty-limit-steps.jsonl")


@pytest.mark.parametrize("name", STEPS)
def test_auto_converge_steps_when_and_as_far_as_qemu_did(name):
    settings = AutoConverge.of({**DEFAULTS, **STEPS[name]["parameters"]})
    high_count = percentage = 0
    found = []
    for _, dirty, sent, _ in STEPS[name]["checks"]:
        due, high_count = throttle_check(settings, dirty, sent, high_count)
        if due:
            percentage = throttle_step(settings, percentage, dirty, sent)
        found.append(percentage)
    assert found == [check[3] for check in STEPS[name]["checks"]]


@pytest.mark.parametrize("name", LIMITS)
def test_dirty_limit_takes_the_steps_and_sleeps_of_qemu(name):
    ring_mib = LIMITS[name]["ring-entries"] * 4096 >> 20
    limits, sleeps, changes, max_rate, n_sleeps = {}, {}, {}, 0, 0
    for event, vcpu, *numbers in LIMITS[name]["steps"]:
        if event == "limit":
            limits[vcpu] = numbers[0]
        elif event == "sleep":
            assert numbers == [sleeps[vcpu]]
            n_sleeps += 1
        elif event == "step":  # QEMU tells of the linear ones: percent and us
            assert abs(changes[vcpu]) == numbers[1]
        elif limits[vcpu]:
            before = sleeps.get(vcpu, 0)
            sleeps[vcpu], max_rate = dirty_limit_sleep(
                limits[vcpu], numbers[0], ring_mib, DirtyLimitSleep(before, max_rate)
            )
            changes[vcpu] = sleeps[vcpu] - before
    assert n_sleeps >= 4


@pytest.mark.parametrize(
    ("dirty", "sent", "threshold", "high"),
    [
        (50, 100, 50, False),  # as much as the threshold is not more
        (51, 100, 50, True),
        (1, 3, 50, False),  # 1.5 bytes are 1
        (2, 3, 50, True),
        (0, 0, 50, False),
        (1, 0, 50, True),
        ((1 << 64) - 1, (1 << 64) - 1, 100, False),
        ((1 << 64) - 1, (1 << 64) - 1, 99, True),
    ],
)
def test_a_check_counts_what_is_above_the_threshold(dirty, sent, threshold, high):
    settings = AutoConverge(threshold, 20, 10, 99, False)
    assert throttle_check(settings, dirty, sent, 0) == (False, int(high))
    assert throttle_check(settings, dirty, sent, 1) == (high, 0 if high else 1)


@pytest.mark.parametrize(
    ("settings", "percentage", "dirty", "sent", "expected"),
    [
        (AutoConverge(50, 20, 10, 99, False), 0, 1000, 1000, 20),
        (AutoConverge(50, 20, 10, 99, False), 20, 1000, 1000, 30),
        (AutoConverge(50, 20, 10, 99, False), 95, 1000, 1000, 99),
        (AutoConverge(50, 20, 10, 60, False), 90, 1000, 1000, 60),  # the most was lowered
        (AutoConverge(50, 20, 10, 60, True), 90, 1000, 1000, 60),
        # 30 % of the time is left; with 500 of 510 bytes 29 % would do: a step of one.
        (AutoConverge(50, 20, 10, 99, True), 70, 510, 1000, 71),
        (AutoConverge(50, 20, 10, 99, True), 70, 1000, 1000, 80),
        (AutoConverge(50, 20, 40, 99, True), 20, 1000, 1000, 60),  # half of the 80 % left
        (AutoConverge(50, 20, 10, 99, True), 70, 500, 1000, 70),
    ],
)
def test_a_step_of_auto_converge(settings, percentage, dirty, sent, expected):
    assert throttle_step(settings, percentage, dirty, sent) == expected


PERCENT = st.integers(1, 99)


@given(st.integers(1, 100), PERCENT, PERCENT, PERCENT, st.booleans(), st.integers(0, 99), U64, U64)
def test_a_throttle_stays_within_its_bounds(
    threshold, initial, increment, most, tailslow, percentage, dirty, sent
):
    settings = AutoConverge(threshold, min(initial, most), increment, most, tailslow)
    step = throttle_step(settings, percentage, dirty, sent)
    assert 1 <= step <= most
    assert step >= min(percentage, most)
    assert step - percentage <= max(increment, settings.initial)


@pytest.mark.parametrize("changed", ["trigger_threshold", "initial", "increment", "most"])
def test_parameters_of_auto_converge_out_of_range_are_refused(changed):
    settings = AutoConverge(50, 20, 10, 99, False)._replace(**{changed: 101})
    with pytest.raises(OSError, match="throttle_step"):
        throttle_step(settings, 20, 1, 1)


@pytest.mark.parametrize(
    ("n_pages", "ms", "rate", "rate_of_whole_mib"),
    [
        (256, 1000, 1, 1),
        (255, 1000, 0, 0),
        (255, 100, 9, 0),
        (511, 500, 3, 2),
        (96_768, 1000, 378, 378),
        (96_800, 1004, 376, 376),
        (0, 1, 0, 0),
        (1 << 52, 1, (1 << 44) * 1000, (1 << 44) * 1000),
    ],
)
def test_a_rate_is_whole_mib_per_second(n_pages, ms, rate, rate_of_whole_mib):
    assert dirty_limit_rate(n_pages, ms) == rate
    assert dirty_limit_rate(n_pages, ms, whole_mib=True) == rate_of_whole_mib


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (dirty_limit_rate, (1, 0)),
        (dirty_limit_rate, ((1 << 52) + 1, 1)),
        (dirty_limit_ring_full_us, (16, 0)),
        (dirty_limit_ring_full_us, ((1 << 30) + 1, 1)),
        (dirty_limit_sleep, (0, 100, 16, DirtyLimitSleep(0, 0))),
        (dirty_limit_sleep, (1, 100, (1 << 30) + 1, DirtyLimitSleep(0, 0))),
        (dirty_limit_sleep, (1, 100, 16, DirtyLimitSleep(1 << 63, 0))),
        (restraint_next, (1, 100, 100)),
        (throttle_step, (AutoConverge(50, 20, 10, 99, False), 100, 1, 1)),
        (throttle_check, (AutoConverge(101, 20, 10, 99, False), 1, 1, 0)),
    ],
)
def test_numbers_out_of_bounds_are_refused(function, arguments):
    with pytest.raises(OSError, match=function.__name__):
        function(*arguments)


def test_a_ring_is_full_after_its_pages():
    assert dirty_limit_ring_full_us(16, 378) == 42_328
    assert dirty_limit_ring_full_us(0, 378) == 0


@pytest.mark.parametrize(
    ("quota", "current", "before", "after"),
    [
        (100, 125, (500, 400), (500, 400)),  # near enough
        (100, 126, (500, 400), (500 + 4000, 400)),  # a tenth of 40 ms
        (100, 200, (500, 400), (500 + 4000, 400)),  # half is not above half
        (100, 400, (500, 400), (500 + 120_000, 400)),  # 75 %: three times 40 ms
        (100, 800, (0, 400), (133_846, 800)),  # 87 %; the highest rate is this one's now
        (100, 0, (500, 400), (0, 400)),  # it writes nothing
        (20, 0, (500, 400), (500, 400)),  # but that is near enough
        (100, 74, (5000, 400), (1000, 400)),
        (100, 74, (500, 400), (0, 400)),  # not below none
        (1, 400, (10**9, 400), (99 * 40_000, 400)),
        (400, 100, (200_000, 400), (80_000, 400)),
    ],
)
def test_a_step_of_a_dirty_limit(quota, current, before, after):
    assert dirty_limit_sleep(quota, current, 16, DirtyLimitSleep(*before)) == after


@given(U64.filter(bool), U64, st.integers(0, 1 << 30), st.integers(0, (1 << 63) - 1), U64)
def test_a_limited_vcpu_sleeps_within_the_bounds(quota, current, ring_mib, sleep_us, max_rate):
    found = dirty_limit_sleep(quota, current, ring_mib, DirtyLimitSleep(sleep_us, max_rate))
    if abs(quota - current) <= 25:
        assert found == (sleep_us, max_rate)
    elif not current:
        assert found == (0, max_rate)
    else:
        assert found.max_rate == max(max_rate, current)
        most = 99 * dirty_limit_ring_full_us(ring_mib, found.max_rate)
        assert 0 <= found.sleep_us <= most
        if quota < current:
            assert found.sleep_us >= min(sleep_us, most)
        else:
            assert found.sleep_us <= sleep_us


@pytest.mark.parametrize(
    ("quota", "current", "first"),
    [(100, 90, 0), (100, 0, 0), (100, 115, 0), (100, 116, 13), (100, 200, 50), (10, 1000, 75)],
)
def test_the_restraint_begins_as_far_off_as_the_rate_is(quota, current, first):
    assert restraint_first(quota, current) == first


@pytest.mark.parametrize(
    ("quota", "current", "last", "following"),
    [
        (100, 115, 40, 40),  # near enough
        (100, 85, 40, 40),
        (100, 200, 0, 25),
        (100, 200, 40, 65),
        (100, 200, 60, 75),
        (100, 200, 75, 80),
        (100, 200, 88, 90),
        (100, 200, 90, 92),
        (100, 200, 98, 99),
        (100, 200, 99, 99),
        (100, 50, 40, 15),
        (100, 50, 26, 1),
        (100, 50, 25, 0),
        (100, 50, 2, 0),
        (100, 50, 75, 70),
        (100, 50, 90, 88),
        (100, 0, 90, 0),
    ],
)
def test_the_restraint_goes_on_in_steps(quota, current, last, following):
    assert restraint_next(quota, current, last) == following


@given(U64, U64, st.integers(0, 99))
def test_a_restraint_stays_within_its_bounds(quota, current, last):
    assert 0 <= restraint_first(quota, current) <= 75
    following = restraint_next(quota, current, last)
    assert 0 <= following <= 99
    if current > quota:
        assert following >= last
    else:
        assert following <= last


# ---- aggression ----

AMOUNT = st.one_of(st.just(0.0), st.floats(0, 1e18), st.floats(0, 1e9), st.just(1e18))
TICKS = st.builds(
    AggressionTick, AMOUNT, AMOUNT, AMOUNT, st.floats(0, 1), st.booleans(), st.booleans()
)


@given(st.lists(st.tuples(TICKS, st.floats(0, 1)), min_size=1, max_size=40))
def test_a_target_is_a_share_of_time_whatever_is_measured(ticks):
    state = Aggression()
    for tick, level in ticks:
        state, ran, *_ = aggression_tick(state, tick, level)
        assert 0 <= ran <= 1 - level
        assert 0 <= state.break_even <= 1
        assert 0.05 <= state.factor <= 1
        assert all(math.isfinite(value) for value in state)


GOOD = AggressionTick(100.0, 400.0, 200.0, 0.5)


@pytest.mark.parametrize(
    ("changed", "level"),
    [
        ({"sent": math.nan}, 0.5),
        ({"written": -1.0}, 0.5),
        ({"dirtied": 1.1e18}, 0.5),
        ({"ran": 1.01}, 0.5),
        ({}, 1.01),
        ({}, math.nan),
    ],
)
def test_what_cannot_have_been_measured_is_refused(changed, level):
    with pytest.raises(OSError, match="aggression_tick"):
        aggression_tick(Aggression(), GOOD._replace(**changed), level)


@pytest.mark.parametrize(
    "changed", [{"factor": 0.0}, {"break_even": 1.5}, {"mean_sent": -1.0}, {"sum_sent": math.inf}]
)
def test_a_state_that_cannot_be_is_refused(changed):
    with pytest.raises(OSError, match="aggression_tick"):
        aggression_tick(Aggression(**changed), GOOD, 0.5)


def test_the_first_sample_is_believed_and_later_ones_by_a_hundredth():
    state = aggression_tick(Aggression(), GOOD, 0.0).state
    assert state.break_even == 0.125  # half of the time, a quarter of what was written
    state = aggression_tick(state, GOOD._replace(sent=800.0), 0.0).state
    assert state.break_even == pytest.approx(0.99 * 0.125 + 0.01 * 1)


@pytest.mark.parametrize("changed", [{"ran": 0.0}, {"idle": True}])
def test_a_tick_that_says_nothing_of_the_break_even_leaves_it(changed):
    state = aggression_tick(Aggression(), GOOD, 0.0).state
    target = aggression_tick(state, GOOD._replace(sent=800.0, **changed), 0.0)
    assert target.state.break_even == state.break_even
    assert target.state.mean_sent == 800
    # Before there is a sample the level alone decides.
    assert aggression_tick(Aggression(), GOOD._replace(**changed), 0.25).ran == 0.75


def test_a_guest_that_writes_nothing_may_run():
    target = aggression_tick(Aggression(), AggressionTick(100.0, 0.0, 0.0, 0.5), 0.0)
    assert target.ran == target.state.break_even == 1


def test_few_writes_pull_up_an_average_of_ratios_alone():
    much, little = GOOD, GOOD._replace(written=1.0)
    for averages, low, high in ((False, 0.5, 0.7), (True, 0.22, 0.28)):
        state = Aggression()
        for i in range(2000):
            tick = (much, little)[i % 2]._replace(averages=averages)
            state = aggression_tick(state, tick, 0.0).state
        assert low < state.break_even < high


def test_both_tests_decide_on_the_factor():
    state = aggression_tick(Aggression(sum_sent=1000.0, sum_dirtied=50.0), GOOD, 0.0).state
    assert state.factor == 1  # nothing had been asked of the guest in that tick
    target = aggression_tick(state, GOOD, 0.0)  # 100 sent and 200 dirtied
    assert (target.averages_pass, target.sums_pass) == (False, True)
    assert target.state.factor == 0.95
    target = aggression_tick(target.state, GOOD._replace(sent=100_000.0), 0.0)
    assert (target.averages_pass, target.sums_pass) == (True, True)
    assert target.state.factor == 1
    state = aggression_tick(Aggression(sum_sent=5.0, sum_dirtied=1000.0), GOOD, 0.0).state
    target = aggression_tick(state, GOOD._replace(sent=300.0), 0.0)
    assert (target.averages_pass, target.sums_pass) == (True, False)
    assert target.state.factor == 0.95


def test_the_factor_has_a_floor_from_which_it_recovers():
    state = Aggression()
    for _ in range(100):
        state, ran, *_ = aggression_tick(state, GOOD, 0.0)
    assert state.factor == 0.05
    assert ran == pytest.approx(0.05 * 0.125)
    for _ in range(1000):
        state, *_ = aggression_tick(state, GOOD._replace(sent=1000.0), 0.0)
    assert state.factor == 1


class Sweep:
    """Pre-copy of a guest that sweeps over more than it ever writes, in ticks of 100 ms.

    All its writes are to pages that have been sent, so each has to be sent again.
    """

    sent = 5_000_000.0  # bytes a tick

    def __init__(self, level, spread=0.0):
        self.level, self.spread = level, spread
        self.pages, self.remaining = 4000.0, 1e9
        self.state = Aggression(sum_sent=2e9)  # with the bulk pass
        self.ran, self.n_ticks = 1.0, 0
        self.random = random.Random(1)

    def tick(self):
        """Let a tick pass."""
        pages = self.pages * self.random.uniform(1 - self.spread, 1 + self.spread)
        dirtied = 4096 * pages * self.ran
        self.remaining += dirtied - self.sent
        self.state, self.ran, *_ = aggression_tick(
            self.state, AggressionTick(self.sent, dirtied, dirtied, self.ran), self.level
        )
        self.n_ticks += 1


@pytest.mark.parametrize("level", [0.25, 0.5, 1])
def test_what_remains_falls_as_the_level_says(level):
    sweep = Sweep(level)
    for _ in range(10):
        sweep.tick()
    at_first = sweep.remaining
    for _ in range(100):
        sweep.tick()
    assert sweep.state.break_even == pytest.approx(Sweep.sent / (4096 * 4000), rel=0.05)
    assert (at_first - sweep.remaining) / 100 == pytest.approx(level * Sweep.sent, rel=0.1)
    # And so the migration lasts as long as that takes.
    while sweep.remaining > 0:
        sweep.tick()
    assert sweep.n_ticks == pytest.approx(1e9 / (level * Sweep.sent), rel=0.1)


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1, 0.3, 0.5])
def test_level_0_ends_by_the_factor_alone(spread):
    # Of a load that is never even the average of ratios is too high: the break-even gains nothing.
    sweep = Sweep(0.0, spread)
    lowest = 1.0
    while sweep.remaining > 0:
        sweep.tick()
        lowest = min(lowest, sweep.state.factor)
        assert sweep.n_ticks < 1e9 / (0.01 * Sweep.sent)
    assert sweep.state.break_even > 0.99 * Sweep.sent / (4096 * 4000)
    assert lowest < 0.9
    assert sweep.n_ticks > 1e9 / (0.25 * Sweep.sent)  # later than with level 0.25


def test_the_break_even_follows_a_step_of_the_load():
    sweep = Sweep(0.5)
    for _ in range(1000):
        sweep.tick()
    before = sweep.state.break_even
    sweep.pages *= 2
    for _ in range(100):
        sweep.tick()
    moved = (before - sweep.state.break_even) / (before - before / 2)
    assert moved == pytest.approx(1 - math.exp(-1), abs=0.05)


def test_a_level_may_change_at_any_tick():
    sweep = Sweep(0.5)
    for _ in range(200):
        sweep.tick()
    sweep.level = 1
    sweep.tick()
    assert sweep.ran == 0
    break_even = sweep.state.break_even
    for _ in range(200):
        sweep.tick()  # while it stands it learns nothing, and forgets nothing
    assert sweep.state.break_even == break_even
    sweep.level = 0.5
    sweep.tick()
    assert sweep.ran == pytest.approx(0.5 * break_even)
