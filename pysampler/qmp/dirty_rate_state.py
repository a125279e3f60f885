# SPDX-License-Identifier: MIT
"""calc-dirty-rate and query-dirty-rate: unstarted -> measuring -> measured."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

from pysampler.clock import MonotonicClock
from pysampler.errors import PysamplerError
from pysampler.qemu.dirty_rate import (
    CALC_TIME_MAX_MS,
    CALC_TIME_MIN_MS,
    SAMPLE_PAGES_DEFAULT,
    SAMPLE_PAGES_MAX,
    SAMPLE_PAGES_MIN,
)
from pysampler.qmp.wire.messages import QmpError
from pysampler.units import CalcTimeUnit
from pysampler.vector.interrupted import MeasurementInterruptedError
from pysampler.vector.measurement import Measurement, Mode, Status

if TYPE_CHECKING:
    from pysampler.qmp.interface import Measure

UNITS: tuple[CalcTimeUnit, ...] = get_args(CalcTimeUnit)

_END_S = 1  # how long a measurement has to end when the server closes
_FAILED = -1  # the dirty rate QEMU reports when a measurement failed


@dataclass(frozen=True, slots=True)
class _Run:
    """A measurement: its arguments and its results so far."""

    status: Status = Status.UNSTARTED
    mode: Mode = Mode.PAGE_SAMPLING
    sample_pages: int = 0
    calc_time_ms: int = 0
    start_time: int = 0
    measurement: Measurement | None = None
    error: str | None = None


class DirtyRate:
    """The dirty rate of one guest: at most one measurement at a time, in a thread of its own.

    `start` and `info` are for one thread, the event loop's.
    """

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._run = _Run()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def start(
        self,
        calc_time: int,
        unit: CalcTimeUnit = "second",
        sample_pages: int | None = None,
        mode: Mode = Mode.PAGE_SAMPLING,
    ) -> None:
        """Begin to measure and return.

        Raises:
            QmpError: the arguments are refused, checked in QEMU's order; the last result is
                kept.
        """
        calc_time_ms = calc_time if unit == "millisecond" else calc_time * 1000
        if self._run.status is Status.MEASURING:
            raise QmpError("the dirty rate is already being measured.")
        if not CALC_TIME_MIN_MS <= calc_time_ms <= CALC_TIME_MAX_MS:
            raise QmpError(
                f"Calculation time is out of range [{CALC_TIME_MIN_MS}ms, {CALC_TIME_MAX_MS}ms]."
            )
        if sample_pages is None:
            sample_pages = SAMPLE_PAGES_DEFAULT
        elif mode is not Mode.PAGE_SAMPLING:
            raise QmpError("sample-pages is used only in page-sampling mode")
        if not SAMPLE_PAGES_MIN <= sample_pages <= SAMPLE_PAGES_MAX:
            raise QmpError(f"sample-pages is out of range[{SAMPLE_PAGES_MIN}, {SAMPLE_PAGES_MAX}].")
        if mode not in self._measure.modes:
            raise QmpError(f"mode {mode.value} is not enabled, use other method instead.")
        self._run = _Run(
            Status.MEASURING, mode, sample_pages, calc_time_ms, start_time=int(time.time())
        )
        # A daemon, so that whatever a broken measurement does, the process can end.
        self._thread = threading.Thread(
            target=self._work, args=(self._run, unit), name="calc-dirty-rate", daemon=True
        )
        self._thread.start()

    def _work(self, run: _Run, unit: CalcTimeUnit) -> None:
        measurement = None
        error = None
        try:
            for measurement in self._measure(
                mode=run.mode,
                calc_time_ms=run.calc_time_ms,
                calc_time_unit=unit,
                sample_pages=run.sample_pages,
                clock=_Clock(self._closing),
            ):
                if measurement.status is Status.MEASURING:
                    self._run = replace(run, measurement=measurement)
            if measurement is None or measurement.status is not Status.MEASURED:
                error = "the measurement ended early"
        except PysamplerError as failed:
            error = str(failed)
        except Exception as failed:  # noqa: BLE001  # a failed measurement must not stop the guest
            error = f"{type(failed).__name__}: {failed}"
        # As QEMU does, a failure ends in `measured` too: a client that polls for it goes on.
        self._run = replace(
            run,
            status=Status.MEASURED,
            measurement=measurement if error is None else None,
            error=error,
        )

    def info(self, unit: CalcTimeUnit = "second") -> dict[str, Any]:
        """Return the reply to query-dirty-rate: QEMU's members in its order, then the vector's.

        Args:
            unit: of ``calc-time``, which is cut to a whole number of it.
        """
        run = self._run
        is_measured = run.status is Status.MEASURED
        calc_time_ms = run.calc_time_ms
        if is_measured and run.measurement:
            calc_time_ms = int(run.measurement.duration_ms)
        is_exact = is_measured and run.mode is not Mode.PAGE_SAMPLING
        info: dict[str, Any] = {
            "status": run.status.value,
            "sample-pages": 0 if is_exact else run.sample_pages,
        }
        if is_measured:
            info["dirty-rate"] = run.measurement.dirty_rate if run.measurement else _FAILED
        info |= {
            "mode": run.mode.value,
            "calc-time-unit": unit,
            "start-time": run.start_time,
            "calc-time": calc_time_ms if unit == "millisecond" else calc_time_ms // 1000,
        }
        vector = run.measurement.to_dict() if run.measurement else {}
        if "vcpu-dirty-rate" in vector:
            info["vcpu-dirty-rate"] = vector["vcpu-dirty-rate"]
        if run.error is not None:
            vector = {"x-pysampler": {"error": run.error}}
        return info | {key: value for key, value in vector.items() if key not in info}

    def close(self) -> None:
        """End a running measurement, or leave it behind when it takes long.

        A second call does nothing.
        """
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_END_S)


class _Clock(MonotonicClock):
    """The machine's clock, whose waits end when the server closes."""

    def __init__(self, closing: threading.Event) -> None:
        self._closing = closing

    def wait_until(self, deadline_ns: int) -> None:
        """Wait for the deadline.

        Raises:
            MeasurementInterruptedError: the server closes.
        """
        if self._closing.wait(max(0, deadline_ns - self.now_ns()) / 1e9):
            raise MeasurementInterruptedError("the QMP server was closed", None)
