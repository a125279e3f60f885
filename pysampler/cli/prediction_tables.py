# SPDX-License-Identifier: MIT
"""Predictions and scores as text for people."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pysampler.prediction.prediction import PUBLISHED_LIMITS_MS, format_limit
from pysampler.printable import printable
from pysampler.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pysampler.prediction.evaluate import Score
    from pysampler.prediction.prediction import Cell, Interval, Prediction

_PUBLISHED_NAMES = (
    "100 Mbps", "1 Gbps", "2 Gbps", "2.5 Gbps", "5 Gbps", "10 Gbps", "25 Gbps", "40 Gbps",
)  # fmt: skip


def published_table(prediction: Prediction) -> str:
    """Return the published grid in the published layout; its Gbps are 2^30 bit/s."""
    limits = ["unlim" if limit is None else f"{limit:.0f}ms" for limit in PUBLISHED_LIMITS_MS]
    lines = [_published_line("Downtime>", limits)]
    lines.append("-" * len(lines[0]))
    cells = iter(prediction.cells)
    lines += [
        _published_line(name, [eta(next(cells).total_ms) for _ in limits])
        for name in _PUBLISHED_NAMES
    ]
    return "\n".join(lines) + "\n"


def _published_line(name: str, columns: list[str]) -> str:
    return f"{name:>9} | " + " | ".join(f"{column:>8}" for column in columns)


def eta(ms: float | None) -> str:
    """Return ``48s``, ``1m07s`` or ``1h02m03s``, rounded up; ``-`` for None."""
    if ms is None:
        return "-"
    minutes, seconds = divmod(math.ceil(ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m{seconds:02}s"
    return f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def format_ms(ms: float | None) -> str:
    """Return ``85 ms``, ``3.71 s``, ``1m07s``; ``-`` for None."""
    if ms is None:
        return "-"
    return format_duration(ms / 1000) if ms < 60_000 else eta(ms)


def format_probability(p: float) -> str:
    """Return whole percent; ``>99 %`` and ``<1 %`` where rounding would promise too much."""
    if 0.995 <= p < 1:
        return ">99 %"
    return "<1 %" if 0 < p < 0.005 else f"{p:.0%}".replace("%", " %")


def _interval(interval: Interval | None) -> str:
    if interval is None:
        return ""
    if interval == (None, None):
        return "-"
    low, high = interval
    return f"{format_ms(low)} .. {'no end' if high is None else format_ms(high)}"


def prediction_table(prediction: Prediction) -> Table:
    """Return one row per cell."""
    table = Table(title=f"Migration, model {prediction.model}")
    intervals = any(cell.total_ms_interval for cell in prediction.cells)
    table.add_column("bandwidth", justify="right", no_wrap=True)
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_column("total", justify="right", no_wrap=True)
    if intervals:
        table.add_column("5 .. 95 %", justify="right", no_wrap=True)
    for name in ("downtime", "sent", "passes", "converges"):
        table.add_column(name, justify="right", no_wrap=True)
    previous = None
    for cell in prediction.cells:
        if previous is not None and cell.bandwidth != previous:
            table.add_section()
        columns = _columns(cell)
        table.add_row(*(columns if intervals else columns[:3] + columns[4:]))
        previous = cell.bandwidth
    return table


def _columns(cell: Cell) -> list[str | Text]:
    style = "green" if cell.p_converge >= 0.95 else "red" if cell.p_converge < 0.05 else "yellow"
    return [
        format_rate(cell.bandwidth),
        format_limit(cell.downtime_limit_ms),
        format_ms(cell.total_ms),
        _interval(cell.total_ms_interval),
        format_ms(cell.downtime_ms),
        "-" if cell.sent_bytes is None else format_size(cell.sent_bytes),
        "-" if cell.iterations is None else str(cell.iterations),
        Text(format_probability(cell.p_converge), style),
    ]


def score_table(scores: Sequence[Score]) -> Table:
    """Return one row per model and kind of vector, and the bad cases below."""
    table = Table(title="Error of the total time on real migrations")
    for name in ("vector", "model", "migrations", "median", "P90", "worst", "bad", "Brier"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in 90 % interval", justify="right", no_wrap=True)
    for score in scores:
        figures = score.to_dict()
        table.add_row(
            printable(score.vector),
            score.model,
            str(len(score.cases)),
            *(
                "-" if figures[key] is None else f"{figures[key]:.1f} %"
                for key in ("median-error-percent", "p90-error-percent", "worst-error-percent")
            ),
            f"{score.n_bad} ({score.n_bad / len(score.cases):.1%})",
            f"{score.brier:.3f}",
            "-" if score.coverage is None else f"{score.coverage:.0%}",
        )
    return table


def bad_cases(score: Score) -> list[str]:
    """Return a line for each bad case of a score."""
    lines = []
    for case in score.cases:
        if case.bad:
            one = case.migration
            real = format_ms(one.total_ms) if one.converged else "did not converge"
            lines.append(
                f"{one.title}, {format_rate(one.bandwidth)}, {format_limit(one.downtime_limit_ms)}:"
                f" {real}, predicted {format_ms(case.cell.total_ms)},"
                f" converges {format_probability(case.cell.p_converge)}"
            )
    return lines
