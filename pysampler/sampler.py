# SPDX-License-Identifier: MIT
"""The measurement itself: passes on a schedule, frozen into a Measurement."""

from __future__ import annotations

import platform
import secrets
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from pysampler.arguments import as_whole_number
from pysampler.clock import MonotonicClock
from pysampler.core import Hasher
from pysampler.errors import (
    FaultError,
    MeasurementInterruptedError,
    PysamplerError,
    SourceError,
    UsageError,
)
from pysampler.measurement import FORMAT_VERSION, Measurement, Mode, Status
from pysampler.passes import PassCount, Passes
from pysampler.plan import PROFILES, SAMPLE_PAGES_MAX, Profile, draw_plan
from pysampler.ramblock import MIN_USED_LENGTH, RAMBlock
from pysampler.schedule import periods_ms
from pysampler.source.buffer import buffer_block
from pysampler.units import GIB, MIB, parse_duration_ms
from pysampler.unreadable import in_words
from pysampler.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Buffer, Self

    from pysampler.clock import Clock
    from pysampler.units import CalcTimeUnit

CALC_TIME_MIN_MS = 50  # QEMU's
CALC_TIME_MAX_MS = 4 * 3600 * 1000  # ours; QEMU's is 60 s
PAGE_SIZE = 4096
THREADS_MAX = 256


class Observer(Protocol):
    """What watches the memory: page sampling here, exact tracking elsewhere.

    Attributes:
        mode: how it finds dirty pages.
        n_total_pages: pages of all RAMBlocks.
        n_sampled_pages: pages it watches.
        sample_pages: samples per GiB; 0 where every page is watched.
    """

    mode: Mode
    n_total_pages: int
    n_sampled_pages: int
    sample_pages: int

    def warm_up(self) -> None:
        """Prepare, so that the baseline takes no longer than a comparison."""

    def baseline(self) -> PassCount:
        """Begin to watch; count zero pages."""

    def compare(self) -> PassCount:
        """Count the pages that are dirty since the baseline."""

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return (vCPU number, dirty pages) as of the last comparison, where that is known."""

    def details(self) -> dict[str, Any]:
        """Return its members of ``x-pysampler``."""

    def close(self) -> None:
        """Let go of everything; a second call does nothing."""


class PageSampling:
    """Observer that hashes a sample of the pages; SPEC of mode ``page-sampling``.

    Args:
        blocks: what to sample; blocks below 128 KiB are skipped.
        profile: how to draw and hash.
        sample_pages: samples per GiB, 128 to 16384; None for the profile's own.
        seed: repeats a draw; None for a new one.
        threads: reading threads.

    Raises:
        UsageError: a number is out of range.
        SourceError: there is nothing to sample, or a block cannot be read.
    """

    mode = Mode.PAGE_SAMPLING

    def __init__(
        self,
        blocks: Sequence[RAMBlock],
        *,
        profile: Profile,
        sample_pages: int | None = None,
        seed: int | None = None,
        threads: int = 1,
    ) -> None:
        check_threads(threads)
        if seed is not None and not 0 <= seed < 1 << 64:
            raise UsageError(f"seed must be between 0 and 2^64 - 1 (got {seed})")
        self._profile = profile
        self._threads = threads
        self._blocks = [block for block in blocks if block.used_length >= MIN_USED_LENGTH]
        if not self._blocks:
            raise SourceError("there is no RAMBlock of at least 128 KiB to sample")
        self.plan = draw_plan(
            [block.used_length for block in self._blocks],
            profile=profile,
            sample_pages=profile.sample_pages if sample_pages is None else sample_pages,
            seed=secrets.randbits(64) if seed is None else seed,
            page_size=PAGE_SIZE,
        )
        self.sample_pages = self.plan.sample_pages
        self.n_total_pages = self.plan.n_total_pages
        self.n_sampled_pages = self.plan.n_sampled_pages
        if self.n_sampled_pages == 0:
            raise SourceError(_too_few_samples(self._blocks, self.sample_pages))
        self._hasher = Hasher(profile.hash)
        self._passes = Passes(self._blocks, self.plan, self._hasher, threads)
        self.warm_up = self._passes.warm_up
        self.baseline = self._passes.baseline
        self.compare = self._passes.compare
        self.copy = self._passes.copy
        self.close = self._passes.close

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return nothing: who wrote a page does not show in it."""
        return ()

    def details(self) -> dict[str, Any]:
        """Return profile, hash, seed, threads and how each block is read."""
        return {
            "profile": self._profile.name,
            "hash": self._profile.hash.name.lower(),
            "seed": self.plan.seed,
            "threads": self._threads,
            "blocks": [
                {
                    "idstr": block.idstr,
                    "used-length": block.used_length,
                    "page-size": block.page_size,
                    "access": reader.access,
                    "n-sampled-pages": len(vfns),
                }
                for block, reader, vfns in zip(
                    self._blocks, self._passes.readers, self.plan.vfns, strict=True
                )
            ],
        }


def _too_few_samples(blocks: Sequence[RAMBlock], sample_pages: int) -> str:
    longest = max(block.used_length for block in blocks)
    needed = -(-GIB // longest)
    cure = (
        f"raise sample-pages to {needed} or more"
        if needed <= SAMPLE_PAGES_MAX
        else "there is too little memory"
    )
    return f"{sample_pages} sample-pages per GiB give no sample in {longest} bytes: {cure}"


class Sampler:
    """One measurement: iterate over it, and each period comes as it is measured; its end closes it.

    Every item is the vector so far, with status ``measuring`` until the last one. After an
    interruption `measurement` still has the periods measured before it.

    >>> with Sampler(PageSampling(blocks, profile=PROFILES["qemu"]), 10_000) as sampler:
    ...     for measurement in sampler:
    ...         print(measurement.periods[-1], measurement.n_dirty_pages[-1])

    Args:
        observer: what watches the memory; closed with the sampler.
        calc_time_ms: duration, 50 ms to 4 h.
        calc_time_unit: the unit in which the vector states whole seconds.
        clock: for tests.

    Raises:
        UsageError: ``calc_time_ms`` is out of range.
    """

    def __init__(
        self,
        observer: Observer,
        calc_time_ms: int,
        calc_time_unit: CalcTimeUnit = "second",
        clock: Clock | None = None,
    ) -> None:
        check_calc_time(calc_time_ms)
        self._observer = observer
        self._calc_time_ms = calc_time_ms
        # A part of a second can be said in one unit only.
        self._calc_time_unit: CalcTimeUnit = (
            "millisecond" if calc_time_ms % 1000 else calc_time_unit
        )
        self._clock = MonotonicClock() if clock is None else clock
        self.schedule = periods_ms(calc_time_ms)
        self._begun = False
        self.measurement: Measurement | None = None

    def __iter__(self) -> Iterator[Measurement]:
        """Measure. A sampler measures once.

        Raises:
            MeasurementInterruptedError: memory went away; it carries the periods before that.
        """
        if self._begun:
            raise RuntimeError("a Sampler measures once; make another one")
        self._begun = True
        try:
            yield from self._measure()
        except (PysamplerError, OSError, MemoryError) as error:
            # What was measured before is kept, whatever ends it; else the error says all.
            if self.measurement is None and not isinstance(error, (FaultError, OSError)):
                raise
            words = str(error) or "not enough memory"
            raise MeasurementInterruptedError(words, self.measurement) from error
        finally:
            self.close()

    def _measure(self) -> Iterator[Measurement]:
        observer, clock = self._observer, self._clock
        observer.warm_up()
        start_time = int(time.time())
        start_ns = clock.now_ns()
        zero = observer.baseline()
        baseline_ns = clock.now_ns() - start_ns
        if zero.unreadable == observer.n_sampled_pages:
            found = in_words(zero.causes) or f"none of {zero.unreadable} was readable"
            raise SourceError(
                f"no page can be read without disturbing the guest: of what was asked for, {found}"
            )
        starts_ns: list[int] = []
        passes_ns: list[int] = []
        counts: list[PassCount] = []
        while True:
            is_last = len(counts) == len(self.schedule)
            self.measurement = Measurement(
                page_size=PAGE_SIZE,
                periods=tuple(ns // 1_000_000 for ns in starts_ns),
                n_dirty_pages=tuple(count.pages for count in counts),
                n_sampled_pages=observer.n_sampled_pages,
                n_zero_pages=zero.pages,
                n_total_pages=observer.n_total_pages,
                sample_pages=observer.sample_pages,
                calc_time_ms=self._calc_time_ms,
                calc_time_unit=self._calc_time_unit,
                start_time=start_time,
                status=Status.MEASURED if is_last else Status.MEASURING,
                mode=observer.mode,
                vcpu_dirty_rate=self._vcpu_rates(starts_ns[-1]) if is_last else (),
                details={
                    "format-version": FORMAT_VERSION,
                    "tool-version": __version__,
                    "host": platform.node(),
                    "kernel": platform.release(),
                    **observer.details(),
                    "baseline": {"pass-ns": baseline_ns, "unreadable": zero.unreadable},
                    "periods-ns": starts_ns.copy(),
                    "passes-ns": passes_ns.copy(),
                    "unreadable": [count.unreadable for count in counts],
                    **_causes([zero, *counts]),
                    **_changes(counts),
                },
            )
            self.measurement = _with_interval(self.measurement)
            if counts:
                yield self.measurement
            if is_last:
                return
            due_ms = self.schedule[len(counts)]
            if starts_ns:  # after a stall, periods still rise by whole ms
                due_ms = max(due_ms, starts_ns[-1] // 1_000_000 + 1)
            clock.wait_until(start_ns + due_ms * 1_000_000)
            begin_ns = clock.now_ns()
            count = observer.compare()
            passes_ns.append(clock.now_ns() - begin_ns)
            starts_ns.append(begin_ns - start_ns)
            counts.append(count)

    def _vcpu_rates(self, passed_ns: int) -> tuple[tuple[int, int], ...]:
        """Return each vCPU's MiB/s in QEMU's integer arithmetic."""
        duration_ms = max(self._calc_time_ms, passed_ns // 1_000_000)
        return tuple(
            (vcpu, (pages * PAGE_SIZE // MIB) * 1000 // duration_ms)
            for vcpu, pages in self._observer.vcpu_pages()
        )

    def close(self) -> None:
        """Close the observer; a second call does nothing."""
        self._observer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _changes(counts: Sequence[PassCount]) -> dict[str, list[int]]:
    changes = [count.changes for count in counts if count.changes is not None]
    return {"changes": changes} if changes else {}


def _causes(counts: Sequence[PassCount]) -> dict[str, dict[str, int]]:
    """Return the largest count of each cause over the passes."""
    largest: dict[str, int] = {}
    for count in counts:
        for cause, n in count.causes.items():
            largest[cause] = max(n, largest.get(cause, 0))
    return {"unreadable-causes": largest} if largest else {}


def _with_interval(measurement: Measurement) -> Measurement:
    is_complete = measurement.n_sampled_pages == measurement.n_total_pages
    if is_complete and not any(measurement.unreadable):
        return measurement  # exact: nothing is estimated
    curve = measurement.curve()
    if is_complete:
        confidence, method = 1.0, "bounds"
    else:
        confidence = 0.95
        method = "stratified" if "changes" in measurement.details else "wilson"
    interval = {
        "confidence": confidence,
        "method": method,
        "dirty-pages-low": np.floor(curve.low).astype(np.int64).tolist(),
        "dirty-pages-high": np.ceil(curve.high).astype(np.int64).tolist(),
    }
    return replace(measurement, details={**measurement.details, "interval": interval})


def check_calc_time(calc_time_ms: int) -> None:
    """Raise UsageError when a duration is out of range."""
    if not CALC_TIME_MIN_MS <= calc_time_ms <= CALC_TIME_MAX_MS:
        raise UsageError(
            f"calc-time must be between {CALC_TIME_MIN_MS} ms and"
            f" {CALC_TIME_MAX_MS // 3_600_000} h (got {calc_time_ms} ms)"
        )


def check_threads(threads: int) -> int:
    """Return a number of threads as an int; raise UsageError when it is none or out of range."""
    threads = as_whole_number(threads, "threads")
    if not 1 <= threads <= THREADS_MAX:
        raise UsageError(f"threads must be between 1 and {THREADS_MAX} (got {threads})")
    return threads


def as_blocks(source: Sequence[RAMBlock] | RAMBlock | Buffer) -> list[RAMBlock]:
    """Return what the Python API is given as RAMBlocks."""
    if isinstance(source, RAMBlock):
        return [source]
    if isinstance(source, (list, tuple)):
        for block in source:
            if not isinstance(block, RAMBlock):
                raise UsageError(
                    f"source: a list has RAMBlocks in it, not {type(block).__name__};"
                    " buffer_block() makes one of a buffer"
                )
        return list(source)
    return [buffer_block(cast("Buffer", source))]


def measure(
    source: Sequence[RAMBlock] | RAMBlock | Buffer,
    *,
    calc_time: float | str = 60,
    sample_pages: int | None = None,
    profile: str = "qemu",
    seed: int | None = None,
    threads: int = 1,
) -> Sampler:
    """Return a measurement to iterate over, each period as it is measured.

    Args:
        source: RAMBlocks, or one, or any Python buffer.
        calc_time: duration: seconds, or text such as ``"500ms"``; 50 ms to 4 h.
        sample_pages: samples per GiB, 128 to 16384; None for the profile's own.
        profile: ``qemu``, ``qemu-7`` or ``fast``.
        seed: repeats a draw of pages; None draws anew.
        threads: reading threads.

    Raises:
        UsageError: an argument is out of range.
        SourceError: a RAMBlock cannot be read, or there is nothing to sample.
    """
    calc_time_ms, unit = parse_duration_ms(str(calc_time), "calc-time")
    check_calc_time(calc_time_ms)
    if not isinstance(profile, str) or profile not in PROFILES:
        raise UsageError(f"profile must be one of {', '.join(PROFILES)} (got {profile!r})")
    observer = PageSampling(
        as_blocks(source),
        profile=PROFILES[profile],
        sample_pages=None
        if sample_pages is None
        else as_whole_number(sample_pages, "sample-pages"),
        seed=None if seed is None else as_whole_number(seed, "seed"),
        threads=check_threads(threads),
    )
    return Sampler(observer, calc_time_ms, unit)


def sample(
    source: Sequence[RAMBlock] | RAMBlock | Buffer,
    *,
    calc_time: float | str = 60,
    sample_pages: int | None = None,
    profile: str = "qemu",
    seed: int | None = None,
    threads: int = 1,
) -> Measurement:
    """Sample memory for ``calc_time`` and return the vector. Arguments as of `measure`.

    Raises:
        UsageError: an argument is out of range.
        SourceError: a RAMBlock cannot be read, or there is nothing to sample.
        MeasurementInterruptedError: memory went away; it carries the periods before that.
    """
    with measure(
        source,
        calc_time=calc_time,
        sample_pages=sample_pages,
        profile=profile,
        seed=seed,
        threads=threads,
    ) as sampler:
        *_, measurement = sampler
    return measurement
