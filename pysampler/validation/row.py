# SPDX-License-Identifier: MIT
"""One measurement of the experiment, with everything that is needed to judge it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from pysampler.errors import FormatError
from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.validation.theory import dirty_rate
from pysampler.validation.workload import WORKLOADS

DIRTY_BITMAP = "dirty-bitmap"

# Bounds of what is read: no guest has so many bytes or writes.
_MOST = 1 << 62
_MOST_TEXT = 200


@dataclass(frozen=True)
class Row:
    """One measurement. Pages are pages of 4 KiB, times seconds.

    Attributes:
        workload: a name of WORKLOADS.
        size: bytes of the guest.
        calc_time_ms: asked.
        method: a profile's name, or ``dirty-bitmap``.
        repeat: from 0.
        sample_pages: per GiB; 0 for dirty-bitmap.
        asked_wps: writes a second that the writer was asked for.
        idle_wps: writes a second counted just before, while nothing was measured.
        seconds: from the start of the baseline pass to that of the compare pass.
        writes: counted between these.
        baseline_seconds: duration of the baseline pass.
        baseline_writes: counted during it.
        compare_seconds: of the compare pass.
        compare_writes: counted during it.
        n_sampled_pages: samples; all pages for dirty-bitmap.
        n_dirty_pages: dirty ones.
        truth_pages: pages that the guest knows to have been written since the baseline's start.
        truth_writes: counted until these were looked up, just before the compare pass.
        tracking: how dirty-bitmap found written pages; empty for sampling.
    """

    workload: str
    size: int
    calc_time_ms: int
    method: str
    repeat: int
    sample_pages: int
    asked_wps: int
    idle_wps: float
    seconds: float
    writes: int
    baseline_seconds: float
    baseline_writes: int
    compare_seconds: float
    compare_writes: int
    n_sampled_pages: int
    n_dirty_pages: int
    truth_pages: int
    truth_writes: int
    tracking: str = ""

    @property
    def n_pages(self) -> int:
        """Pages of the guest."""
        return self.size // PAGE_SIZE

    @property
    def wps(self) -> float:
        """Writes a second, counted."""
        return self.writes / self.seconds

    @property
    def slowed(self) -> float:
        """The part of its speed that the writer lost while it was measured."""
        return 1 - self.wps / self.idle_wps if self.idle_wps else 0.0

    @property
    def late_seconds(self) -> float:
        """How late the compare pass began."""
        return self.seconds - self.calc_time_ms / 1000

    @property
    def estimate(self) -> float:
        """Dirty pages of the guest as measured."""
        return self.n_dirty_pages / self.n_sampled_pages * self.n_pages

    def expected(self, writes: float) -> float:
        """Return the dirty pages that theory expects after so many writes."""
        return WORKLOADS[self.workload].distinct(self.n_pages, writes).mean

    @property
    def theory(self) -> float:
        """Expected dirty pages at the counted rate."""
        return self.expected(self.writes)

    @property
    def sd(self) -> float:
        """Expected standard deviation of `estimate`: of the sample and of the writer."""
        variance = WORKLOADS[self.workload].variance(
            self.n_pages,
            self.writes,
            self.n_sampled_pages,
            strata=self.method == "fast",
            pass_writes=(self.baseline_writes, self.compare_writes),
        )
        return math.sqrt(variance)

    @property
    def z(self) -> float:
        """Deviation from theory in standard deviations; rounding to whole pages is none."""
        return (self.estimate - self.theory) / max(self.sd, 0.5)

    @property
    def deviation(self) -> float:
        """Deviation from theory as a fraction of it."""
        return self.estimate / self.theory - 1 if self.theory else 0.0

    @property
    def truth_deviation(self) -> float:
        """Deviation of the truth from the theory of its own writes, as a fraction."""
        expected = self.expected(self.truth_writes)
        return self.truth_pages / expected - 1 if expected else 0.0

    def rate(self, pages: float) -> float:
        """Return the dirty rate in MiB/s that so many pages are over this measurement."""
        return dirty_rate(pages, self.seconds, PAGE_SIZE)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object: the measurements, and the figures derived from them."""
        return {key.replace("_", "-"): value for key, value in asdict(self).items()} | {
            "mib-s": round(self.rate(self.estimate), 1),
            "theory-mib-s": round(self.rate(self.theory), 1),
            "sd-mib-s": round(self.rate(self.sd), 2),
            "truth-mib-s": round(self.rate(self.truth_pages), 1),
            "z": round(self.z, 3),
        }

    @classmethod
    def from_dict(cls, values: object) -> Row:
        """Return the row of a JSON object that `to_dict` made.

        Raises:
            FormatError: a member is missing, or is nothing that was measured.
        """
        if not isinstance(values, dict):
            raise FormatError("not a row of a validation: no object")
        members = {}
        for field in fields(cls):
            key = field.name.replace("_", "-")
            if key not in values:
                raise FormatError(f"not a row of a validation: {key!r} is missing")
            members[field.name] = value = values[key]
            if not (_is_text(value) if field.type == "str" else _is_figure(value, field.type)):
                raise FormatError(f"not a row of a validation: {key!r} is not as it is written")
        row = cls(**members)
        measured = row.n_pages and row.seconds and row.n_sampled_pages
        if row.workload not in WORKLOADS or not measured:
            raise FormatError("not a row of a validation: of no guest or no measurement")
        return row


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_TEXT


def _is_figure(value: object, kind: object) -> bool:
    types = (int,) if kind == "int" else (int, float)
    return isinstance(value, types) and not isinstance(value, bool) and 0 <= value <= _MOST
