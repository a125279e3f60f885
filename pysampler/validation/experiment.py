# SPDX-License-Identifier: MIT
"""The experiment: one writer, measured by every method for every calc-time, in shuffled order."""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pysampler.errors import PysamplerError, SourceError
from pysampler.host import machine
from pysampler.measuring import make_observer
from pysampler.sampling.plan import PROFILES
from pysampler.units import format_size
from pysampler.validation.row import DIRTY_BITMAP, Row
from pysampler.validation.watched_guest import WatchedGuest, memory_needed
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from pysampler.sampling.observer import Observer

# The published calc-times, ms.
CALC_TIMES_MS = (100, 200, 300, 400, 500, 750, 1000, 1500, 2000)

_IDLE_SECONDS = 0.25


@dataclass(frozen=True)
class Experiment:
    """What is to be measured.

    Attributes:
        workload: a name of WORKLOADS.
        sizes: bytes of the guests.
        calc_times_ms: durations.
        methods: names of profiles, and ``dirty-bitmap``.
        repeats: measurements of each cell.
        wps: writes a second that the guest is asked for; 0 for as many as it can.
        sample_pages: samples per GiB of all profiles; None for each profile's own.
        seed: of the guests, the draws and the order.
    """

    workload: str
    sizes: tuple[int, ...]
    calc_times_ms: tuple[int, ...]
    methods: tuple[str, ...]
    repeats: int
    wps: int
    sample_pages: int | None
    seed: int

    @property
    def n_rows(self) -> int:
        """How many measurements that makes."""
        return len(self.sizes) * len(self.calc_times_ms) * len(self.methods) * self.repeats

    @property
    def seconds(self) -> float:
        """How long the measurements take together, guests' starts not counted."""
        waits = sum(self.calc_times_ms) / 1000 + _IDLE_SECONDS * len(self.calc_times_ms)
        return waits * len(self.sizes) * len(self.methods) * self.repeats


class Watched(Protocol):
    """What the loop needs of a guest."""

    def writes(self) -> int:
        """Return how many writes the guest has done."""

    def dirty_since(self, monotonic_ns: int) -> int:
        """Return how many pages have been written since then."""

    def speed(self, seconds: float) -> float:
        """Return writes a second, counted over so many seconds."""


class Reading(NamedTuple):
    """What `read_window` counted; times in ns of the clock."""

    idle_wps: float
    starts_ns: tuple[int, int]
    ends_ns: tuple[int, int]
    writes_at_starts: tuple[int, int]
    writes_at_ends: tuple[int, int]
    n_dirty_pages: int
    truth_pages: int
    writes_at_truth: int


def refuse_what_does_not_fit(sizes: tuple[int, ...]) -> None:
    """Refuse guests that are larger than the free memory.

    Raises:
        SourceError: one does not fit; the message says by how much.
    """
    available = machine.available_bytes()
    for size in sizes:
        if memory_needed(size) > available:
            raise SourceError(
                f"a guest of {format_size(size)} takes {format_size(memory_needed(size))},"
                f" and {format_size(available)} are free: leave this size out"
            )


def run(experiment: Experiment, skip: Callable[[str], None]) -> Generator[Row, None, None]:
    """Measure; yields each row as it is done.

    Args:
        experiment: what to measure.
        skip: told, once each, what cannot be measured here and why.

    Raises:
        SourceError: a guest does not fit or did not start.
    """
    refuse_what_does_not_fit(experiment.sizes)
    methods = list(experiment.methods)
    order = random.Random(experiment.seed)  # noqa: S311 - an order, no secret
    wps = experiment.wps or "max"
    for size in experiment.sizes:
        workload = f"{experiment.workload}:wps={wps}"
        with WatchedGuest(size, workload, experiment.seed) as guest:
            guest.speed(_IDLE_SECONDS)  # the first writes fault its pages in
            cells = [
                (repeat, calc_time_ms, method)
                for repeat in range(experiment.repeats)
                for calc_time_ms in experiment.calc_times_ms
                for method in methods
            ]
            order.shuffle(cells)
            for repeat, calc_time_ms, method in cells:
                if method not in methods:
                    continue
                try:
                    observer = _observer(guest, method, experiment, order.getrandbits(64))
                except PysamplerError as error:
                    methods.remove(method)
                    skip(f"{method} left out: {error}")
                    continue
                with closing(observer):
                    reading = read_window(observer, guest, calc_time_ms)
                yield make_row(
                    reading,
                    workload=experiment.workload,
                    size=size,
                    calc_time_ms=calc_time_ms,
                    method=method,
                    repeat=repeat,
                    sample_pages=observer.sample_pages,
                    n_sampled_pages=observer.n_sampled_pages,
                    asked_wps=experiment.wps,
                    tracking=observer.details().get("tracking", ""),
                )


def _observer(guest: WatchedGuest, method: str, experiment: Experiment, seed: int) -> Observer:
    if method == DIRTY_BITMAP:
        return make_observer([guest.block], Mode.DIRTY_BITMAP, pid=guest.pid)
    return make_observer(
        [guest.block],
        Mode.PAGE_SAMPLING,
        profile=PROFILES[method],
        sample_pages=experiment.sample_pages,
        seed=seed,
    )


def read_window(
    observer: Observer,
    guest: Watched,
    calc_time_ms: int,
    now_ns: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Reading:
    """Measure once, and read the guest's counters where the passes start and end.

    Args:
        observer: what watches the memory.
        guest: its counters.
        calc_time_ms: from the start of the baseline pass to that of the compare pass.
        now_ns: CLOCK_MONOTONIC, as the guest stamps its writes.
        sleep: for tests.
    """

    def wait_until(due: int) -> None:
        # The last half millisecond is waited for awake: a late start is the machine's doing then.
        while (left := due - now_ns()) > 0:
            if left > 500_000:
                sleep((left - 500_000) / 1e9)

    # Before the observer touches anything: exact tracking slows the guest from its warm-up on.
    idle_wps = guest.speed(_IDLE_SECONDS)
    observer.warm_up()
    look = now_ns()
    guest.dirty_since(look)
    look_ns = now_ns() - look
    begin, writes_begin = now_ns(), guest.writes()
    observer.baseline()
    begun, writes_begun = now_ns(), guest.writes()
    due = begin + calc_time_ms * 1_000_000
    wait_until(due - look_ns)
    writes_before = guest.writes()
    truth = guest.dirty_since(begin)
    writes_after = guest.writes()
    wait_until(due)
    end, writes_end = now_ns(), guest.writes()
    count = observer.compare()
    ended, writes_ended = now_ns(), guest.writes()
    return Reading(
        idle_wps=idle_wps,
        starts_ns=(begin, end),
        ends_ns=(begun, ended),
        writes_at_starts=(writes_begin, writes_end),
        writes_at_ends=(writes_begun, writes_ended),
        n_dirty_pages=count.pages,
        truth_pages=truth,
        writes_at_truth=(writes_before + writes_after) // 2,
    )


def make_row(
    reading: Reading,
    *,
    workload: str,
    size: int,
    calc_time_ms: int,
    method: str,
    repeat: int,
    sample_pages: int,
    n_sampled_pages: int,
    asked_wps: int,
    tracking: str = "",
) -> Row:
    """Return the row of a reading; the other arguments are the row's own."""
    (begin, end), (begun, ended) = reading.starts_ns, reading.ends_ns
    (writes_begin, writes_end), (writes_begun, writes_ended) = (
        reading.writes_at_starts,
        reading.writes_at_ends,
    )
    return Row(
        workload=workload,
        size=size,
        calc_time_ms=calc_time_ms,
        method=method,
        repeat=repeat,
        sample_pages=sample_pages,
        asked_wps=asked_wps,
        idle_wps=reading.idle_wps,
        seconds=(end - begin) / 1e9,
        writes=writes_end - writes_begin,
        baseline_seconds=(begun - begin) / 1e9,
        baseline_writes=writes_begun - writes_begin,
        compare_seconds=(ended - end) / 1e9,
        compare_writes=writes_ended - writes_end,
        n_sampled_pages=n_sampled_pages,
        n_dirty_pages=reading.n_dirty_pages,
        truth_pages=reading.truth_pages,
        truth_writes=reading.writes_at_truth - writes_begin,
        tracking=tracking,
    )
