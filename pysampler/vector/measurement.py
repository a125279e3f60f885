# SPDX-License-Identifier: MIT
"""Measurement: the vector, frozen, to and from JSON.

The numbers and their meaning, on the published vector (a 32 GiB guest with 16 MiB of video RAM):

==================  ==========  ==============================================================
JSON key            example     meaning
==================  ==========  ==============================================================
page-size           4096        bytes of a page; all page counts below are in pages of this size
sample-pages        512         an input: pages to sample per GiB of a RAMBlock
n-total-pages       8392704     pages of all sampled RAMBlocks (32 GiB + 16 MiB)
n-sampled-pages     16392       an output: samples drawn (32 x 512 + 8)
n-zero-pages        10060       samples that held only zeros in the baseline pass
periods             [125, ...]  ms from the start of the baseline pass to that of a compare pass
n-dirty-pages       [33, ...]   samples that differed from the baseline in that pass
calc-time           60          asked duration, in seconds unless calc-time-unit says otherwise
dirty-rate          98          MiB/s over calc-time, or over the last period where that is
                                longer: n-dirty-pages[-1] of n-sampled-pages of 32784 MiB, each
                                page counted once however often it was written
start-time          2916750     seconds, on the host clock of the tool that measured
status              measured    unstarted, measuring (ended early) or measured
mode                page-...    page-sampling, dirty-bitmap or dirty-ring
==================  ==========  ==============================================================

So n-dirty-pages[0] / n-sampled-pages x n-total-pages = 33 / 16392 x 8392704 = 16896 pages
were dirtied in the first 125 ms.

A page is dirty when its content differs from the baseline's. A page that is written with what it
already holds, or is changed and changed back, is not dirty; so the vector need not be monotone.

Versions of the ``x-pysampler`` member:
    1  first; ``unreadable`` has the samples that were not read in each pass, and a sample that
       was not read in the baseline pass was compared with what it held later
    2  ``unreadable`` has the samples that could not be compared with the baseline, and the upper
       end of ``interval`` holds them; ``unreadable-causes``
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import Enum
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

import numpy as np

from pysampler.arguments import is_real
from pysampler.errors import FormatError
from pysampler.units import MIB, CalcTimeUnit
from pysampler.vector.intervals import FloatArray, stratified, wilson

if TYPE_CHECKING:
    from collections.abc import Mapping


FORMAT_VERSION = 2

# Far above any real vector; what arrives from outside is bounded before memory is taken.
MAX_JSON_BYTES = 4 << 20
MAX_PERIODS = 4096
_MAX_PAGES = 1 << 52  # 16 EiB of 4 KiB pages
# No pass is done sooner, and curves are fitted to rates of one over it.
_SHORTEST_MS = 1e-3


class Status(str, Enum):
    """QEMU's DirtyRateStatus."""

    UNSTARTED = "unstarted"
    MEASURING = "measuring"
    MEASURED = "measured"


class Mode(str, Enum):
    """QEMU's DirtyRateMeasureMode."""

    PAGE_SAMPLING = "page-sampling"
    DIRTY_BITMAP = "dirty-bitmap"
    DIRTY_RING = "dirty-ring"


class Curve(NamedTuple):
    """The dirty-page curve of a measurement; four float64 arrays of one length.

    Attributes:
        seconds: exact times since the baseline pass where they are known, else the periods.
        dirty_pages: estimated dirty pages of the whole memory.
        low: lower end of the 95 % interval of dirty_pages: Wilson's, or that of strata
            when the vector says how its samples changed in address order. Samples that
            could not be compared with the baseline count as clean.
        high: its upper end, for which they count as dirty.
    """

    seconds: FloatArray
    dirty_pages: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True)
class Measurement:
    """One measurement of a guest's dirty pages: the vector. See the module's table.

    Attributes:
        page_size: bytes.
        periods: ms since the baseline pass; whole and rising strictly when pysampler measured.
        n_dirty_pages: dirty samples, one per period.
        n_sampled_pages: samples drawn.
        n_zero_pages: zero pages among them in the baseline pass.
        n_total_pages: pages of all sampled RAMBlocks.
        sample_pages: samples asked per GiB; 0 where every page was tracked.
        calc_time_ms: asked duration.
        calc_time_unit: the unit in which JSON states it.
        start_time: seconds of the measuring host's clock.
        status: measured, or measuring for a measurement that ended early.
        mode: how dirty pages were found.
        vcpu_dirty_rate: (vCPU id, MiB/s) pairs, in mode dirty-ring only.
        details: the ``x-pysampler`` member, JSON values only.
    """

    page_size: int
    periods: tuple[float, ...]
    n_dirty_pages: tuple[int, ...]
    n_sampled_pages: int
    n_zero_pages: int
    n_total_pages: int
    sample_pages: int = 0
    calc_time_ms: int = 0
    calc_time_unit: CalcTimeUnit = "second"
    start_time: int = 0
    status: Status = Status.MEASURED
    mode: Mode = Mode.PAGE_SAMPLING
    vcpu_dirty_rate: tuple[tuple[int, int], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def duration_ms(self) -> float:
        """Divisor of rates in ms, as in QEMU: calc-time, or the last period where it is longer."""
        return max(self.calc_time_ms, self.periods[-1] if self.periods else 0)

    @property
    def unreadable(self) -> tuple[int, ...]:
        """Samples that could not be compared with the baseline, one count per period.

        Each may be dirty or clean, and is not in n_dirty_pages.
        """
        counts = self.details.get("unreadable")
        if not _are_counts(counts, len(self.periods)):
            return (0,) * len(self.periods)
        baseline = self.details.get("baseline")
        if self.details.get("format-version") == 1 and isinstance(baseline, dict):
            # There, a sample that came after the baseline pass was no longer counted.
            before = [baseline.get("unreadable")] * len(counts)
            if _are_counts(before, len(counts)):
                counts = [sum(both) for both in zip(counts, before, strict=True)]
        return tuple(
            min(count, self.n_sampled_pages - dirty)
            for count, dirty in zip(counts, self.n_dirty_pages, strict=True)
        )

    @property
    def dirty_rate(self) -> int | None:
        """MiB/s over `duration_ms` in QEMU's integer arithmetic; None until measured.

        In mode dirty-ring it is the sum of the vCPUs' rates.
        """
        if self.status is not Status.MEASURED:
            return None
        if self.mode is Mode.DIRTY_RING:
            return sum(rate for _, rate in self.vcpu_dirty_rate)
        if not self.n_dirty_pages or not self.n_sampled_pages or not self.duration_ms:
            return 0
        total_mib = self.n_total_pages * self.page_size // MIB
        dirty_mib = self.n_dirty_pages[-1] * total_mib // self.n_sampled_pages
        return int(dirty_mib * 1000 // self.duration_ms)

    def curve(self) -> Curve:
        """Return the dirty pages of the whole memory over time, with 95 % intervals."""
        exact_ns = self.details.get("periods-ns")
        # A vector may have been edited on its way: the exact times must still be its own.
        if isinstance(exact_ns, list) and len(exact_ns) == len(self.periods):
            seconds = np.asarray(exact_ns, dtype=np.float64) / 1e9
        else:
            seconds = np.asarray(self.periods, dtype=np.float64) / 1e3
        dirty = np.asarray(self.n_dirty_pages, dtype=np.float64)
        most = dirty + np.asarray(self.unreadable, dtype=np.float64)
        scale = self.n_total_pages / max(self.n_sampled_pages, 1)
        if self.n_sampled_pages == self.n_total_pages:  # every page tracked: nothing is estimated
            return Curve(seconds, dirty, dirty.copy(), most)
        changes = self.details.get("changes")
        if _are_counts(changes, len(dirty)):
            low, _ = stratified(dirty, changes, self.n_sampled_pages, self.n_total_pages)
            # An unreadable sample that is dirty differs from at most both of its neighbours.
            at_most = np.minimum(changes + 2 * (most - dirty), self.n_sampled_pages - 1)
            _, high = stratified(most, at_most, self.n_sampled_pages, self.n_total_pages)
        else:
            low, _ = wilson(dirty, self.n_sampled_pages)
            _, high = wilson(most, self.n_sampled_pages)
        return Curve(seconds, dirty * scale, low * self.n_total_pages, high * self.n_total_pages)

    def to_dict(self) -> dict[str, Any]:
        """Return the vector's JSON object, members in the published order."""
        vector: dict[str, Any] = {
            "page-size": self.page_size,
            "periods": list(self.periods),
            "status": self.status.value,
            "sample-pages": self.sample_pages,
            "dirty-rate": self.dirty_rate,
            "mode": self.mode.value,
            "n-dirty-pages": list(self.n_dirty_pages),
            "n-sampled-pages": self.n_sampled_pages,
            "n-zero-pages": self.n_zero_pages,
            "n-total-pages": self.n_total_pages,
            "start-time": self.start_time,
            "calc-time": self.calc_time_ms
            if self.calc_time_unit == "millisecond"
            else self.calc_time_ms // 1000,
        }
        if self.dirty_rate is None:
            del vector["dirty-rate"]
        if self.calc_time_unit == "millisecond":
            vector["calc-time-unit"] = "millisecond"
        if self.vcpu_dirty_rate:
            vector["vcpu-dirty-rate"] = [
                {"id": vcpu, "dirty-rate": rate} for vcpu, rate in self.vcpu_dirty_rate
            ]
        if self.details:
            vector["x-pysampler"] = dict(self.details)
        return vector

    def to_json(self) -> str:
        """Return the vector as text: one member a line, as the published one is printed."""
        members = (
            f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in self.to_dict().items()
        )
        return "{\n" + ",\n".join(members) + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Measurement:
        """Read a vector from JSON text, pysampler's own or any with the published keys.

        The page counts, periods and page-size must be there; what else is missing gets
        its default, and unknown members are ignored. It may come as a reply of QMP's,
        ``{"return": {...}}``.

        Raises:
            FormatError: not JSON, not a vector, or a number that cannot be; the message
                names the key.
        """
        return cls.from_dict(parse_json(text))

    @classmethod
    def from_dict(cls, vector: object) -> Measurement:
        """Read a vector from a parsed JSON object. See `from_json`."""
        vector = _without_envelope(vector)
        if not isinstance(vector, dict):
            raise FormatError("a vector is a JSON object with page-size, periods, n-dirty-pages")
        if "dirty-rate" in vector and "periods" not in vector:
            raise FormatError(
                "periods: missing, as in QEMU's reply to query-dirty-rate; of that only"
                " `pysampler advise --quick` can tell something"
            )
        read = _Reader(vector)
        n_sampled = read.integer("n-sampled-pages", high=_MAX_PAGES)
        n_total = read.integer("n-total-pages", high=_MAX_PAGES)
        if n_sampled > n_total * 16:
            # With replacement more samples than pages are possible, but sample-pages
            # ends at 16384 per GiB, which is one in sixteen pages.
            raise FormatError("n-sampled-pages: more samples than n-total-pages allows")
        periods = read.times("periods", high=1 << 40)
        dirty = read.integers("n-dirty-pages", high=n_sampled)
        if len(periods) != len(dirty):
            raise FormatError(
                f"n-dirty-pages has {len(dirty)} values, but periods has {len(periods)}"
            )
        unit = read.choice("calc-time-unit", ("second", "millisecond"), "second")
        calc_time = read.integer("calc-time", high=1 << 40, default=0)
        details = vector.get("x-pysampler", {})
        if not isinstance(details, dict):
            raise FormatError("x-pysampler: not an object")
        if "periods-ns" in details:  # curve() calculates with them
            _Reader(details).integers("periods-ns", high=1 << 62)
        return cls(
            page_size=read.page_size(),
            periods=periods,
            n_dirty_pages=dirty,
            n_sampled_pages=n_sampled,
            n_zero_pages=read.integer("n-zero-pages", high=n_sampled),
            n_total_pages=n_total,
            sample_pages=read.integer("sample-pages", high=1 << 20, default=0),
            calc_time_ms=calc_time if unit == "millisecond" else calc_time * 1000,
            calc_time_unit=cast("CalcTimeUnit", unit),
            start_time=read.integer("start-time", high=1 << 62, default=0),
            status=Status(read.choice("status", [s.value for s in Status], "measured")),
            mode=Mode(read.choice("mode", [m.value for m in Mode], "page-sampling")),
            vcpu_dirty_rate=read.vcpu_dirty_rate(),
            details=details,
        )


def parse_json(text: str | bytes) -> object:
    """Return the JSON value of a text that is no longer than a vector; of a QMP reply its content.

    Raises:
        FormatError: it is longer, empty, or not JSON.
    """
    if len(text) > MAX_JSON_BYTES:
        raise FormatError(f"longer than {MAX_JSON_BYTES >> 20} MiB, so not a vector")
    if not text.strip():  # as of a pipe whose other end failed
        raise FormatError("empty: there is no vector in it")
    try:
        return _without_envelope(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {_one_line(error)}") from error


def _without_envelope(value: object) -> object:
    if isinstance(value, dict) and "return" in value and "periods" not in value:
        return cast("object", value["return"])
    return value


def _are_counts(value: object, length: int) -> TypeGuard[list[int]]:
    return (
        isinstance(value, list)
        and len(value) == length
        and all(type(count) is int and 0 <= count <= _MAX_PAGES for count in value)
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Reader:
    """Takes checked values out of a JSON object; every complaint names its key."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self._vector = vector

    def _get(self, key: str, default: object = None) -> object:
        value = self._vector.get(key, default)
        if value is None:
            raise FormatError(f"{key}: missing")
        return value

    def integer(self, key: str, *, high: int, default: int | None = None) -> int:
        return _integer(key, self._get(key, default), high)

    def integers(self, key: str, *, high: int) -> tuple[int, ...]:
        values = enumerate(self._array(key))
        return tuple(_integer(f"{key}[{i}]", value, high) for i, value in values)

    def times(self, key: str, *, high: int) -> tuple[float, ...]:
        values = enumerate(self._array(key))
        return tuple(_time(f"{key}[{i}]", value, high) for i, value in values)

    def _array(self, key: str) -> list[object]:
        values = self._get(key)
        if not isinstance(values, list):
            raise FormatError(f"{key}: not an array")
        if len(values) > MAX_PERIODS:
            raise FormatError(f"{key}: {len(values)} values; at most {MAX_PERIODS} make sense")
        return values

    def choice(self, key: str, legal: list[str] | tuple[str, ...], default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str) or value not in legal:
            raise FormatError(f"{key}: {str(value)[:40]!r} is not one of {', '.join(legal)}")
        return value

    def page_size(self) -> int:
        size = self.integer("page-size", high=1 << 16)
        if size < 4096 or size & (size - 1):
            raise FormatError(f"page-size: {size} is not a power of two from 4096 to 65536")
        return size

    def vcpu_dirty_rate(self) -> tuple[tuple[int, int], ...]:
        entries = self._get("vcpu-dirty-rate", [])
        if not isinstance(entries, list) or len(entries) > MAX_PERIODS:
            raise FormatError(f"vcpu-dirty-rate: not an array of at most {MAX_PERIODS} vCPUs")
        rates = []
        for i, entry in enumerate(entries):
            where = f"vcpu-dirty-rate[{i}]"
            if not isinstance(entry, dict):
                raise FormatError(f"{where}: not an object")
            rates.append(
                (
                    _integer(f"{where}.id", entry.get("id"), 1 << 31),
                    _integer(f"{where}.dirty-rate", entry.get("dirty-rate"), 1 << 62),
                )
            )
        return tuple(rates)


def _time(key: str, value: object, high: int) -> float:
    if not is_real(value) or (isinstance(value, float) and math.isnan(value)):
        raise FormatError(f"{key}: {str(value)[:40]!r} is not a number")
    if not 0 <= value <= high:
        raise FormatError(f"{key}: {str(value)[:40]} is not between 0 and {high}")
    if 0 < value < _SHORTEST_MS:
        raise FormatError(f"{key}: {value:g} ms is shorter than any pass ({_SHORTEST_MS:g} ms)")
    return int(value) if value == int(value) else float(value)


def _integer(key: str, value: object, high: int) -> int:
    # bool is an int to Python and is none to JSON; 125.0 is whole to both.
    whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    if not whole or isinstance(value, bool):
        raise FormatError(f"{key}: {str(value)[:40]!r} is not a whole number")
    number = int(cast("int", value))
    if not 0 <= number <= high:
        raise FormatError(f"{key}: {str(value)[:40]} is not between 0 and {high}")
    return number
