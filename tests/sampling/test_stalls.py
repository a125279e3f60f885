"""Passes that take long or begin late: rates are over what passed, and remarks say the effect."""

import dataclasses
import itertools

import pytest
from invented import PAGE, ScriptedClock

from pysampler import Measurement, Mode, Status
from pysampler.sampling.passes import PassCount
from pysampler.sampling.sampler import Sampler
from pysampler.units import MIB
from pysampler.vector.remarks import remarks

N_SAMPLED, N_TOTAL = 1024, 262_144  # of 1 GiB


class Watching:
    """An Observer whose passes take so many ms each, the baseline pass first; 0 in the end.

    Attributes:
        n_dirty: samples found dirty in each compare pass.
    """

    sample_pages, n_sampled_pages, n_total_pages = 1024, N_SAMPLED, N_TOTAL

    def __init__(self, clock, pass_ms=(), n_dirty=512, mode=Mode.PAGE_SAMPLING):
        self._clock, self.n_dirty, self.mode = clock, n_dirty, mode
        self._pass_ms = itertools.chain(pass_ms, itertools.repeat(0))

    def warm_up(self):
        pass

    close = warm_up

    def baseline(self):
        self._clock.stall(next(self._pass_ms))
        return PassCount(0, 0)

    def compare(self):
        self._clock.stall(next(self._pass_ms))
        return PassCount(self.n_dirty, 0)

    def vcpu_pages(self):
        return ((0, 10_240), (1, 5120)) if self.mode is Mode.DIRTY_RING else ()

    def details(self):
        return {}


class LateClock(ScriptedClock):
    """Wakes up late once, when the given time has come; all in ms since the beginning."""

    def __init__(self, at_ms, late_ms):
        super().__init__()
        self._at_ns, self._late_ns = self._start_ns + at_ms * 1_000_000, late_ms * 1_000_000

    def wait_until(self, deadline_ns):
        super().wait_until(deadline_ns)
        if deadline_ns >= self._at_ns:
            self._now_ns, self._late_ns = self._now_ns + self._late_ns, 0


def measured(clock, calc_time_ms=1000, **observer):
    with Sampler(Watching(clock, **observer), calc_time_ms, clock=clock) as sampler:
        *_, vector = sampler
    return vector


@pytest.mark.parametrize(
    ("calc_time_ms", "at_ms", "late_ms", "passed_ms"),
    [
        (1000, 125, 0, 1000),
        (1000, 125, 4000, 4129),  # of five periods, each later one begins a ms later
        (1000, 1000, 4000, 5000),
        (1000, 1000, 1, 1001),
        (700, 700, 137, 837),
        (50, 50, 61, 111),
    ],
)
def test_a_dirty_rate_is_over_the_time_that_passed(calc_time_ms, at_ms, late_ms, passed_ms):
    vector = measured(LateClock(at_ms, late_ms), calc_time_ms)
    assert vector.periods[-1] == passed_ms
    assert vector.duration_ms == passed_ms
    assert vector.dirty_rate == 512 * 1000 // passed_ms  # half of 1 GiB
    assert vector.to_dict()["dirty-rate"] == vector.dirty_rate
    assert vector.calc_time_ms == calc_time_ms
    read = Measurement.from_json(vector.to_json())
    assert (read, read.dirty_rate) == (vector, vector.dirty_rate)


@pytest.mark.parametrize("pass_ms", [(4000,), (0, 0, 3000), (0, 2000, 2000)])
def test_a_dirty_rate_is_over_the_time_that_slow_passes_took(pass_ms):
    vector = measured(ScriptedClock(), pass_ms=pass_ms)
    assert vector.periods[-1] > 3000
    assert vector.dirty_rate == 512 * 1000 // vector.periods[-1]


def test_the_rates_of_vcpus_are_over_the_time_that_passed():
    vector = measured(LateClock(1000, 1500), mode=Mode.DIRTY_RING)
    assert vector.vcpu_dirty_rate == ((0, 40 * 1000 // 2500), (1, 20 * 1000 // 2500))
    assert vector.dirty_rate == 24
    assert 10_240 * PAGE // MIB == 40


def test_an_interrupted_measurement_has_no_dirty_rate_however_long_it_took():
    clock = LateClock(125, 4000)
    with Sampler(Watching(clock), 1000, clock=clock) as sampler:
        vector = next(iter(sampler))
    assert (vector.periods, vector.dirty_rate) == ((4125,), None)


@pytest.mark.parametrize(
    ("periods", "calc_time_ms", "rate"),
    [
        ((125, 1000), 1000, 512),
        ((125, 2500), 1000, 204),
        ((125, 800), 1000, 512),  # as asked where less passed, as QEMU has it
        ((125, 1000.5), 1000, 511),
        ((125, 250), 0, 2048),  # asked in ms and reported in seconds
        ((0, 0), 0, 0),
        ((), 1000, 0),
    ],
)
def test_a_vector_from_elsewhere_has_its_rate_over_what_passed(periods, calc_time_ms, rate):
    vector = Measurement(
        page_size=PAGE,
        periods=periods,
        n_dirty_pages=(512,) * len(periods),
        n_sampled_pages=N_SAMPLED,
        n_zero_pages=0,
        n_total_pages=N_TOTAL,
        calc_time_ms=calc_time_ms,
    )
    assert vector.dirty_rate == rate
    assert isinstance(vector.dirty_rate, int)
    assert dataclasses.replace(vector, status=Status.MEASURING).dirty_rate is None


def test_a_measurement_in_time_is_not_remarked_upon():
    assert remarks(measured(ScriptedClock(), pass_ms=(12, 12, 10, 12, 9, 12))) == []


@pytest.mark.parametrize(
    ("pass_ms", "calc_time_ms", "words"),
    [
        ((110,), 1000, ("110 ms", "88% of the first period", "by up to 88%")),
        ((113, 3, 3, 3, 3, 3), 1000, ("113 ms", "90% of", "by up to 88%")),
        ((40,), 50, ("40 ms", "80% of the first period (50 ms)")),
        ((40, 1), 125, ("40 ms", "by up to 31%")),
        ((2600,), 1000, ("2.6 s", "by up to 100%")),
    ],
)
def test_a_stall_in_the_baseline_is_remarked_upon_with_its_effect(pass_ms, calc_time_ms, words):
    lines = remarks(measured(ScriptedClock(), calc_time_ms, pass_ms=pass_ms))
    (line,) = (line for line in lines if "pass took" in line)
    assert line.startswith("the baseline pass took")
    assert "the dirty counts of the first periods are too low" in line
    assert all(word in line for word in words)


@pytest.mark.parametrize(
    ("pass_ms", "calc_time_ms", "words"),
    [
        ((0, 110), 1000, ("110 ms", "at 125 ms", "by up to 88%")),
        ((2, 2, 2, 112), 1000, ("112 ms", "at 375 ms", "by up to 29%")),
        ((0, 0, 0, 0, 0, 500), 1000, ("500 ms", "at 1000 ms", "by up to 50%")),
        ((1, 26), 50, ("26 ms", "at 50 ms", "by up to 50%")),
    ],
)
def test_a_stall_in_a_compare_pass_is_remarked_upon_with_its_effect(pass_ms, calc_time_ms, words):
    lines = remarks(measured(ScriptedClock(), calc_time_ms, pass_ms=pass_ms))
    (line,) = (line for line in lines if "pass took" in line)
    assert line.startswith("a pass took")
    assert "its dirty count is too high" in line
    assert all(word in line for word in words)


@pytest.mark.parametrize("pass_ms", [(30,) * 6, (15, 14, 13, 14, 13, 13), (0, 20, 10, 10, 10, 10)])
def test_passes_that_are_all_slow_name_what_makes_them_faster(pass_ms):
    lines = remarks(measured(ScriptedClock(), pass_ms=pass_ms))
    assert len(lines) == 1
    assert lines[0].startswith(f"a pass took {max(pass_ms)} ms")
    assert "use fewer --sample-pages" in lines[0]


def test_a_stall_in_the_middle_of_slow_passes_is_told_beside_them():
    lines = remarks(measured(ScriptedClock(), pass_ms=(900, 20, 20, 20, 20, 20)))
    assert ["baseline" in line for line in lines if "pass took" in line] == [True, False]


def test_a_late_end_says_over_what_time_the_dirty_rate_is():
    (line,) = remarks(measured(LateClock(1000, 4000)))
    assert line.startswith("a pass began 4 s late")
    assert "the dirty rate is over the 5 s that passed" in line
    (line,) = remarks(measured(LateClock(250, 30)))
    assert "the dirty rate" not in line
