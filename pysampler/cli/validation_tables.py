# SPDX-License-Identifier: MIT
"""The tables of ``pysampler validate``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pysampler.printable import printable
from pysampler.units import format_size
from pysampler.validation.row import DIRTY_BITMAP
from pysampler.validation.summary import summaries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pysampler.validation.stored_runs import Run
    from pysampler.validation.summary import ValidationCell


def cell_table(found: Sequence[ValidationCell]) -> Table:
    """Return the table of a run: a line for each cell, of which there is one at least."""
    table = Table(
        title=f"MiB/s of a {found[0].rows[0].workload} writer",
        caption="theory: at the writes counted in each measurement; sd: expected standard deviation"
        " of measured; truth: what the guest itself knows",
    )
    for title in ("size", "ms", "method"):
        table.add_column(title)
    columns = ("M writes/s", "theory", "measured", "diff", "sd", "z", "truth", "diff", "published")
    for title in columns:
        table.add_column(title, justify="right")
    before = None
    for cell in found:
        if before is not None and before != cell.size:
            table.add_section()
        before = cell.size
        figures = cell.published
        table.add_row(
            format_size(cell.size),
            str(cell.calc_time_ms),
            cell.method,
            f"{cell.wps / 1e6:.3f}",
            f"{cell.theory:.0f}",
            f"{cell.measured:.0f}",
            f"{cell.deviation:+.2%}",
            "-" if cell.method == DIRTY_BITMAP else f"{cell.sd:.1f}",
            "-" if cell.method == DIRTY_BITMAP else f"{cell.z:+.1f}",
            f"{cell.truth:.0f}",
            f"{cell.truth_deviation:+.2%}",
            ""
            if figures is None
            else str(figures.dirty_bitmap if cell.method == DIRTY_BITMAP else figures.page_sampling)
            + f" of {figures.theory}",
        )
    return table


def run_table(runs: Sequence[Run]) -> Table:
    """Return the table that compares runs: a line for each method and size of each run."""
    table = Table(title="Deviation from theory at the counted rate, by run")
    for title in ("run", "when (UTC)", "machine", "workload", "method", "size"):
        table.add_column(title)
    for title in ("rows", "M writes/s", "mean |dev|", "worst", "chi-square", "p", "slowed"):
        table.add_column(title, justify="right")
    for stored in runs:
        for line in _compared(stored):
            table.add_row(*map(printable, line))
        table.add_section()
    return table


def _compared(stored: Run) -> list[list[str]]:
    facts: dict[str, Any] = stored.machine
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(stored.started))
    lines = []
    for summary in summaries(stored.rows):
        judgement = summary.judgement
        of_one = [
            row for row in stored.rows if row.method == summary.method and row.size == summary.size
        ]
        lines.append(
            [
                str(stored.number),
                when,
                f"{facts.get('cpu')}, {facts.get('kernel')}",
                stored.rows[0].workload,
                summary.method,
                format_size(summary.size),
                str(judgement.n_rows),
                f"{sum(row.wps for row in of_one) / len(of_one) / 1e6:.3f}",
                f"{judgement.mean_deviation:.2%}",
                f"{judgement.worst_deviation:.2%}",
                f"{judgement.chi_square:.1f}/{judgement.n_judged}" if judgement.n_judged else "-",
                f"{judgement.p_value:.2g}" if judgement.n_judged else "-",
                f"{summary.slowed:.1%}",
            ]
        )
    return lines
