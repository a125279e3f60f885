# SPDX-License-Identifier: MIT
"""Rows combined: repeats into cells, cells into the summary of a method."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pysampler.validation.judgement import Judgement, judge
from pysampler.validation.published import Published, published
from pysampler.validation.row import DIRTY_BITMAP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pysampler.validation.row import Row


@dataclass(frozen=True)
class ValidationCell:
    """All repeats of one size, calc-time and method. Rates are MiB/s."""

    rows: tuple[Row, ...]

    def _mean(self, value: Callable[[Row], float]) -> float:
        return sum(value(row) for row in self.rows) / len(self.rows)

    @property
    def size(self) -> int:
        """Bytes of the guest."""
        return self.rows[0].size

    @property
    def calc_time_ms(self) -> int:
        """Asked duration."""
        return self.rows[0].calc_time_ms

    @property
    def method(self) -> str:
        """Profile, or dirty-bitmap."""
        return self.rows[0].method

    @property
    def measured(self) -> float:
        """Mean measured rate."""
        return self._mean(lambda row: row.rate(row.estimate))

    @property
    def theory(self) -> float:
        """Mean rate that theory expects at the counted writes."""
        return self._mean(lambda row: row.rate(row.theory))

    @property
    def truth(self) -> float:
        """Mean rate of the pages that the guest knows to have been written."""
        return self._mean(lambda row: row.rate(row.truth_pages))

    @property
    def deviation(self) -> float:
        """Mean deviation from theory, a fraction."""
        return self._mean(lambda row: row.deviation)

    @property
    def truth_deviation(self) -> float:
        """Mean deviation of the truth from the theory of its own writes, a fraction."""
        return self._mean(lambda row: row.truth_deviation)

    @property
    def sd(self) -> float:
        """Expected standard deviation of `measured`."""
        return math.sqrt(self._mean(lambda row: row.rate(row.sd) ** 2) / len(self.rows))

    @property
    def z(self) -> float:
        """Deviation of all repeats together, in standard deviations."""
        return sum(row.z for row in self.rows) / math.sqrt(len(self.rows))

    @property
    def wps(self) -> float:
        """Mean of the counted writes a second."""
        return self._mean(lambda row: row.wps)

    @property
    def slowed(self) -> float:
        """Median part of its speed that the writer lost while it was measured."""
        return statistics.median(row.slowed for row in self.rows)

    @property
    def published(self) -> Published | None:
        """The published cell of this size and calc-time, for a uniform writer."""
        if self.rows[0].workload != "uniform":
            return None
        return published().get((self.size, self.calc_time_ms))


def cells(rows: Sequence[Row]) -> list[ValidationCell]:
    """Return the cells of a run, by size, calc-time and method, exact tracking last."""
    found: dict[tuple[int, int, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.size, row.calc_time_ms, row.method), []).append(row)
    order = sorted(found, key=lambda key: (*key[:2], key[2] == DIRTY_BITMAP, key[2]))
    return [ValidationCell(tuple(found[key])) for key in order]


@dataclass(frozen=True)
class Summary:
    """The summary of a method on guests of one size.

    Attributes:
        size: bytes of the guests.
        method: profile, or dirty-bitmap.
        judgement: of its rows.
        slowed: median part of its speed that the writer lost.
        published_deviation: mean absolute deviation of the published column from the
            published theory over the calc-times that were measured; None without one.
    """

    size: int
    method: str
    judgement: Judgement
    slowed: float
    published_deviation: float | None


def summaries(rows: Sequence[Row]) -> list[Summary]:
    """Return the summaries of a run, by method and size, exact tracking last."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.method, row.size), []).append(row)
    return [
        Summary(
            size=size,
            method=method,
            judgement=judge(of_one),
            slowed=statistics.median(row.slowed for row in of_one),
            published_deviation=_published_deviation(cells(of_one)),
        )
        for (method, size), of_one in sorted(
            found.items(), key=lambda item: (item[0][0] == DIRTY_BITMAP, item[0])
        )
    ]


def _published_deviation(of_one: Sequence[ValidationCell]) -> float | None:
    deviations = []
    for cell in of_one:
        figures = cell.published
        if figures is not None:
            measured = (
                figures.dirty_bitmap if cell.method == DIRTY_BITMAP else figures.page_sampling
            )
            deviations.append(abs(measured / figures.theory - 1))
    return sum(deviations) / len(deviations) if deviations else None
