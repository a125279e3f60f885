"""Samples that could not be seen: never clean, never zero, named with their cause."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from invented import PAGE, ScriptedClock
from rich.console import Console

from pysampler import Measurement
from pysampler.cli.progress import print_summary
from pysampler.core import PageState
from pysampler.errors import FaultError, SourceError
from pysampler.memory.ramblock import ProcessMemory, RAMBlock
from pysampler.sampling import passes
from pysampler.sampling.page_sampling import PageSampling
from pysampler.sampling.plan import PROFILES
from pysampler.sampling.sampler import Sampler
from pysampler.tracking.full_comparison import FullComparison
from pysampler.vector.measurement import Mode
from pysampler.vector.remarks import remarks

N_PAGES = 4099
HIDDEN = [PageState.SWAPPED, PageState.FILE, PageState.USERFAULTFD, PageState.CLOSED]
NAMES = ["swapped-out", "file-backed", "userfaultfd", "closed"]
WORDS = ["swapped out", "file-backed", "under userfaultfd", "closed to reading"]
NAMED = list(zip(HIDDEN, NAMES, strict=True))
WORDED = list(zip(HIDDEN, WORDS, strict=True))


class Invented:
    """A Reader whose pages are numbers, each seen or not as its state says.

    Attributes:
        content: a number for each page; 0 for a page of zeros.
        state: PageState of each page; CLOSED is found out by reading only.
    """

    access = "invented"

    def __init__(self):
        self.content = np.arange(1, N_PAGES + 1)
        self.state = np.full(N_PAGES, PageState.PRESENT, np.uint8)
        self.n_checks = 0
        self.gone = False

    def begin_pass(self):
        pass

    def states(self, vfns, _order):
        states = self.state[vfns.astype(int)]
        states[states == PageState.CLOSED] = PageState.PRESENT
        return states if states.any() else None

    def hash_pages(self, _hasher, vfns, hashes):
        vfns = vfns.astype(int)
        closed = self.state[vfns] == PageState.CLOSED
        assert set(self.state[vfns]) <= {PageState.PRESENT, PageState.CLOSED}
        done = int(closed.argmax()) if closed.any() else len(vfns)
        hashes[:done] = self.content[vfns[:done]]
        zero = xxhash.xxh64_intdigest(bytes(PAGE), seed=1) & 0xFFFFFFFF
        hashes[:done][self.content[vfns[:done]] == 0] = zero
        return done

    def end_pass(self):
        self.check()

    def check(self):
        self.n_checks += 1
        if self.gone:
            raise FaultError("RAMBlock has gone", idstr="invented")

    def close(self):
        pass


@pytest.fixture
def memory(monkeypatch):
    invented = Invented()
    monkeypatch.setattr(passes, "open_reader", lambda *_: invented)
    return invented


BLOCK = RAMBlock("invented", N_PAGES * PAGE, ProcessMemory(1, 0))


def measured(writes=None, profile="qemu", threads=1, calc_time_ms=600):
    """Periods are 125, 250, 375 and 600 ms; returns the vector and the pages sampled."""
    observer = PageSampling(
        [BLOCK], profile=PROFILES[profile], sample_pages=16384, seed=3, threads=threads
    )
    sampled = observer.plan.vfns[0].astype(int)
    with Sampler(observer, calc_time_ms, "millisecond", ScriptedClock(writes)) as sampler:
        *_, vector = sampler
    return vector, sampled


def setting(array, pages, value):
    def write():
        array[pages] = value

    return write


FIRST_HALF = slice(0, N_PAGES // 2)


@pytest.mark.parametrize("profile", ["qemu", "fast"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("state", "name"), NAMED)
def test_what_appears_after_the_baseline_is_never_clean(memory, state, name, threads, profile):
    memory.state[FIRST_HALF] = state
    shown = setting(memory.state, FIRST_HALF, PageState.PRESENT)
    vector, sampled = measured({200: shown}, profile, threads)
    n_hidden = int((sampled < N_PAGES // 2).sum())
    assert vector.details["baseline"]["unreadable"] == n_hidden
    assert vector.details["unreadable"] == [n_hidden] * 4
    assert vector.details["unreadable-causes"] == {name: n_hidden}
    assert vector.n_dirty_pages == (0,) * 4
    high = vector.details["interval"]["dirty-pages-high"]
    assert min(high) >= n_hidden / len(sampled) * N_PAGES
    assert vector.details["interval"]["dirty-pages-low"] == [0] * 4


@pytest.mark.parametrize("state", HIDDEN)
def test_a_write_after_it_appeared_makes_a_sample_dirty(memory, state):
    memory.state[FIRST_HALF] = state

    def show_half():
        memory.state[: N_PAGES // 4] = PageState.PRESENT

    def write():
        memory.content[: N_PAGES // 8] += N_PAGES

    vector, sampled = measured({200: show_half, 300: write, 400: write})
    n_hidden = int((sampled < N_PAGES // 2).sum())
    n_written = int((sampled < N_PAGES // 8).sum())
    assert vector.n_dirty_pages == (0, 0, n_written, n_written)
    assert vector.details["unreadable"] == [n_hidden] * 2 + [n_hidden - n_written] * 2


@pytest.mark.parametrize("state", HIDDEN)
def test_a_sample_that_goes_back_to_what_it_held_when_it_appeared_is_unknown_again(memory, state):
    memory.state[FIRST_HALF] = state
    shown = setting(memory.state, FIRST_HALF, PageState.PRESENT)
    before = memory.content.copy()
    vector, sampled = measured(
        {
            100: shown,
            200: setting(memory.content, slice(None), 1 << 20),
            300: setting(memory.content, slice(None), before),
        }
    )
    n_hidden = int((sampled < N_PAGES // 2).sum())
    assert vector.n_dirty_pages == (0, len(sampled), 0, 0)
    assert vector.details["unreadable"] == [n_hidden, 0, n_hidden, n_hidden]


@pytest.mark.parametrize("state", HIDDEN)
def test_a_sample_that_goes_out_of_sight_is_unknown_until_it_comes_back(memory, state):
    hidden = slice(100, 1100)
    vector, sampled = measured(
        {
            150: setting(memory.state, hidden, state),
            300: setting(memory.state, hidden, PageState.PRESENT),
            400: setting(memory.content, slice(100, 600), 1 << 20),
        }
    )
    n_hidden = int(((sampled >= 100) & (sampled < 1100)).sum())
    n_written = int(((sampled >= 100) & (sampled < 600)).sum())
    assert vector.details["baseline"]["unreadable"] == 0
    assert vector.details["unreadable"] == [0, n_hidden, 0, 0]
    assert vector.n_dirty_pages == (0, 0, 0, n_written)


@pytest.mark.parametrize("state", HIDDEN)
def test_a_swapped_page_that_comes_back_changed_is_dirty_and_one_seen_dirty_stays_so(memory, state):
    def swap_out_written():
        memory.content[:500] = 1 << 20
        memory.state[500:900] = state

    def swap():
        memory.content[500:700] = 1 << 20
        memory.state[500:900] = PageState.PRESENT
        memory.state[:500] = state

    vector, sampled = measured({100: swap_out_written, 200: swap})
    early, late = (
        int(((sampled >= low) & (sampled < high)).sum()) for low, high in ((0, 500), (500, 700))
    )
    n_out = int(((sampled >= 500) & (sampled < 900)).sum())
    assert vector.n_dirty_pages == (early, *[early + late] * 3)
    assert vector.details["unreadable"] == [n_out, 0, 0, 0]


@pytest.mark.parametrize("state", HIDDEN)
def test_what_was_not_seen_in_the_baseline_is_no_zero_page(memory, state):
    memory.content[:] = 0
    memory.state[FIRST_HALF] = state
    vector, sampled = measured()
    assert vector.n_zero_pages == int((sampled >= N_PAGES // 2).sum())


def test_holes_are_seen_and_are_zeros(memory):
    memory.state[FIRST_HALF] = PageState.HOLE
    vector, sampled = measured(
        {
            100: setting(memory.state, slice(0, 1000), PageState.PRESENT),
            200: setting(memory.state, slice(3000, 4000), PageState.HOLE),
        }
    )
    n_filled = int((sampled < 1000).sum())
    n_punched = int(((sampled >= 3000) & (sampled < 4000)).sum())
    assert vector.n_zero_pages == int((sampled < N_PAGES // 2).sum())
    assert vector.n_dirty_pages == (n_filled, *[n_filled + n_punched] * 3)
    assert vector.details["unreadable"] == [0] * 4
    assert "unreadable-causes" not in vector.details


def test_each_cause_is_counted_and_remarked_upon(memory):
    for i, state in enumerate(HIDDEN):
        memory.state[i * 300 : i * 300 + 100 * (i + 1)] = state
    vector, sampled = measured({300: setting(memory.state, slice(300), PageState.CLOSED)})
    counts = {
        name: int(((sampled >= i * 300) & (sampled < i * 300 + 100 * (i + 1))).sum())
        for i, name in enumerate(NAMES)
    }
    # Those that were swapped out are closed later, together with 200 that were in sight.
    counts["closed"] += int((sampled < 300).sum())
    assert vector.details["unreadable-causes"] == counts
    (remark,) = (line for line in remarks(vector) if "could not be compared" in line)
    for name, words in zip(NAMES, WORDS, strict=True):
        assert f"{counts[name]} {words}" in remark


@pytest.mark.parametrize(("state", "words"), WORDED)
def test_a_cause_that_was_not_found_is_not_named(memory, state, words):
    memory.state[FIRST_HALF] = state
    vector, _ = measured()
    (remark,) = (line for line in remarks(vector) if "could not be compared" in line)
    assert [other for other in WORDS if other in remark] == [words]


@pytest.mark.parametrize(("state", "words"), WORDED)
def test_memory_that_is_wholly_out_of_sight_is_refused_with_what_was_found(memory, state, words):
    memory.state[:] = state
    with pytest.raises(SourceError, match="no page can be read without disturbing") as caught:
        measured()
    assert [other for other in WORDS if other in str(caught.value)] == [words]


@pytest.mark.parametrize("profile", ["qemu", "fast"])
def test_an_interval_holds_both_ends_of_what_may_be(memory, profile):
    """Its ends lie beyond those of the same samples, had the unreadable ones been seen."""
    rng = np.random.default_rng(11)
    for share in (0.02, 0.3, 0.9):
        hidden = np.flatnonzero(rng.random(N_PAGES) < share)
        written = np.flatnonzero(rng.random(N_PAGES) < 0.1)
        ends = []
        for is_hidden in (True, False):
            memory.content[:] = np.arange(1, N_PAGES + 1)
            memory.state[:] = PageState.PRESENT
            memory.state[hidden] = PageState.SWAPPED if is_hidden else PageState.PRESENT
            write = setting(memory.content, written, 1 << 20)
            vector, _ = measured({100: write}, profile, calc_time_ms=125)
            curve = vector.curve()
            ends.append((curve.low[0], curve.high[0]))
        (low, high), (seen_low, seen_high) = ends
        assert low <= seen_low < seen_high <= high


def test_a_comparison_of_everything_is_exact_only_when_everything_was_seen(memory):
    def compared(writes):
        observer = FullComparison([BLOCK])
        with Sampler(observer, 125, "millisecond", ScriptedClock(writes)) as sampler:
            (vector,) = sampler
        return vector

    write = setting(memory.content, slice(3000, 3100), 1 << 20)
    vector = compared({100: write})
    assert "interval" not in vector.details
    memory.content[3000:3100] = 1
    memory.state[:700] = PageState.FILE
    vector = compared({100: write})
    curve = vector.curve()
    assert (curve.low[0], curve.dirty_pages[0], curve.high[0]) == (100, 100, 800)
    interval = vector.details["interval"]
    assert (interval["dirty-pages-low"], interval["dirty-pages-high"]) == ([100], [800])
    assert any("700 file-backed" in line for line in remarks(vector))


def test_a_block_that_has_gone_is_told_at_the_first_sample_that_fails(memory):
    observer = PageSampling([BLOCK], profile=PROFILES["qemu"], sample_pages=16384, seed=3)
    observer.warm_up()
    observer.baseline()
    memory.state[:] = PageState.CLOSED
    memory.gone, memory.n_checks = True, 0
    with pytest.raises(FaultError, match="has gone"):
        observer.compare()
    assert memory.n_checks == 1


def vector_of(**details):
    return Measurement(
        page_size=PAGE,
        periods=(125, 250),
        n_dirty_pages=(3, 7),
        n_sampled_pages=100,
        n_zero_pages=0,
        n_total_pages=100_000,
        calc_time_ms=250,
        mode=Mode.PAGE_SAMPLING,
        details=details,
    )


@pytest.mark.parametrize(
    ("details", "unreadable"),
    [
        ({}, (0, 0)),
        ({"unreadable": [5, 6], "format-version": 2, "baseline": {"unreadable": 9}}, (5, 6)),
        # Version 1 counted what was not read in the pass itself.
        ({"unreadable": [5, 0], "format-version": 1, "baseline": {"unreadable": 9}}, (14, 9)),
        ({"unreadable": [5, 6], "format-version": 1}, (5, 6)),
        ({"unreadable": [5, 6], "format-version": 1, "baseline": {"unreadable": "9"}}, (5, 6)),
        ({"unreadable": [98, 98], "format-version": 2}, (97, 93)),
        ({"unreadable": [5]}, (0, 0)),
        ({"unreadable": [5, -1]}, (0, 0)),
        ({"unreadable": "many"}, (0, 0)),
    ],
)
def test_a_vector_that_was_read_says_how_many_are_unknown(details, unreadable):
    vector = Measurement.from_json(vector_of(**details).to_json())
    assert vector.unreadable == unreadable
    assert (vector.curve().high >= (np.array([3, 7]) + unreadable) / 100 * 100_000).all()


def test_what_is_written_is_read_back(memory):
    memory.state[FIRST_HALF] = PageState.SWAPPED
    vector, _ = measured()
    assert Measurement.from_json(vector.to_json()) == vector
    details = json.loads(vector.to_json())["x-pysampler"]
    assert details["format-version"] == 2
    assert details["unreadable"] == list(vector.unreadable)


@pytest.mark.parametrize(
    ("n_sampled", "unreadable", "words"),
    [
        (100_000, (0, 0), "  after 0.25 s   28 KiB\n"),
        (100_000, (0, 9), "28 KiB  (28 KiB to 64 KiB)\n"),
        (1000, (0, 0), "(95 %: 1.3 MiB to 5.6 MiB)\n"),
        (1000, (0, 93), "(95 %: 1.3 MiB to 46.9 MiB)\n"),
    ],
)
def test_a_summary_is_sure_of_what_was_seen_only(n_sampled, unreadable, words):
    vector = replace(
        vector_of(unreadable=unreadable, **{"passes-ns": [1, 1]}), n_sampled_pages=n_sampled
    )
    vector = Measurement.from_json(vector.to_json())
    out = io.StringIO()
    print_summary(Console(file=out, width=100), vector)
    lines = [line.rstrip() + "\n" for line in out.getvalue().splitlines()]
    assert any(line.endswith(words) for line in lines), lines
