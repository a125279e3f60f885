import pytest

from pysampler.errors import SourceError
from pysampler.sampling.passes import PassCount
from pysampler.validation.experiment import make_row, read_window, refuse_what_does_not_fit

MS = 1_000_000


class World:
    """A clock, a guest that writes 1000 times a ms, and an observer; nothing takes real time."""

    n_total_pages = n_sampled_pages = 1000
    sample_pages = 16384

    def __init__(self, baseline_ms=7, compare_ms=3, look_ms=1):
        self.now = 50 * MS
        self.baseline_ms, self.compare_ms, self.look_ms = baseline_ms, compare_ms, look_ms
        self.events = []

    def now_ns(self):
        self.now += 100  # looking at a clock takes time, or a wait would never end
        return self.now

    def sleep(self, seconds):
        self.now += round(seconds * 1e9)

    def writes(self):
        return self.now // 1000

    def dirty_since(self, monotonic_ns):
        self.now += self.look_ms * MS
        self.events.append(("truth", monotonic_ns))
        return 17

    def speed(self, seconds):
        self.now += round(seconds * 1e9)
        return 1e6

    def warm_up(self):
        self.events.append("warm-up")

    def baseline(self):
        self.events.append("baseline")
        self.now += self.baseline_ms * MS
        return PassCount(0, 0)

    def compare(self):
        self.events.append("compare")
        self.now += self.compare_ms * MS
        return PassCount(321, 0)


def test_counters_are_read_where_passes_start_and_end():
    world = World()
    reading = read_window(world, world, 100, world.now_ns, world.sleep)
    row = make_row(
        reading, workload="uniform", size=1000 << 12, calc_time_ms=100, method="fast", repeat=0,
        sample_pages=16384, n_sampled_pages=1000, asked_wps=0,
    )  # fmt: skip
    assert row.seconds == pytest.approx(0.1, abs=1e-5)
    assert row.writes == pytest.approx(100_000, abs=5)
    assert row.baseline_seconds == pytest.approx(0.007, abs=1e-5)
    assert row.baseline_writes == pytest.approx(7000, abs=5)
    assert row.compare_writes == pytest.approx(3000, abs=5)
    assert (row.n_dirty_pages, row.truth_pages) == (321, 17)
    # The truth is looked up for a ms until the compare pass: half a ms of writes is in doubt.
    assert row.truth_writes == pytest.approx(99_500, abs=10)


def test_the_truth_is_looked_up_between_the_passes():
    world = World()
    read_window(world, world, 100, world.now_ns, world.sleep)
    names = [event if isinstance(event, str) else event[0] for event in world.events]
    assert names == ["warm-up", "truth", "baseline", "truth", "compare"]


def test_a_baseline_longer_than_the_calc_time_makes_a_late_compare_pass():
    world = World(baseline_ms=80)
    reading = read_window(world, world, 50, world.now_ns, world.sleep)
    assert (reading.starts_ns[1] - reading.starts_ns[0]) / MS == pytest.approx(81, abs=0.1)


def test_a_guest_that_does_not_fit_is_refused_with_the_figures():
    with pytest.raises(SourceError, match=r"a guest of 1024 TiB takes .* are free"):
        refuse_what_does_not_fit((1 << 50,))
