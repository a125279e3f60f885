# SPDX-License-Identifier: MIT
"""Sampler: an observer's passes on a schedule, frozen into a Measurement."""

from __future__ import annotations

import platform
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pysampler.clock import MonotonicClock
from pysampler.errors import FaultError, PysamplerError, SourceError, UsageError
from pysampler.qemu.dirty_rate import CALC_TIME_MIN_MS, PAGE_SIZE
from pysampler.units import MIB
from pysampler.vector.interrupted import MeasurementInterruptedError
from pysampler.vector.measurement import FORMAT_VERSION, Measurement, Status
from pysampler.vector.schedule import periods_ms
from pysampler.vector.unreadable import in_words
from pysampler.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from typing_extensions import Self

    from pysampler.clock import Clock
    from pysampler.sampling.observer import Observer
    from pysampler.sampling.passes import PassCount
    from pysampler.units import CalcTimeUnit

LONGEST_CALC_TIME_MS = 4 * 3600 * 1000  # ours; QEMU's is a minute


class Sampler:
    """One measurement. Iterating runs it and yields after each period; the end closes it.

    Each item is the vector so far, with status ``measuring`` until the last one. After an
    interruption `measurement` has the periods that were measured before.

    >>> with Sampler(PageSampling(blocks, profile=PROFILES["qemu"]), 10_000) as sampler:
    ...     for measurement in sampler:
    ...         print(measurement.periods[-1], measurement.n_dirty_pages[-1])

    Args:
        observer: watches the memory; closed with the sampler.
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
    if not CALC_TIME_MIN_MS <= calc_time_ms <= LONGEST_CALC_TIME_MS:
        raise UsageError(
            f"calc-time must be between {CALC_TIME_MIN_MS} ms and"
            f" {LONGEST_CALC_TIME_MS // 3_600_000} h (got {calc_time_ms} ms)"
        )
