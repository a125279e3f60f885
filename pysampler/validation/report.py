# SPDX-License-Identifier: MIT
"""The report: one HTML page that needs nothing else, its figures, and the raw rows."""

from __future__ import annotations

import io
import json
import time
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from pysampler.errors import MissingFeatureError
from pysampler.host.figures import load_matplotlib
from pysampler.host.writer import Folder, writing
from pysampler.units import format_size
from pysampler.validation.judgement import Judgement, at_the_assumed_rate, slower
from pysampler.validation.plots import draw
from pysampler.validation.row import DIRTY_BITMAP
from pysampler.validation.summary import cells, summaries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from pysampler.validation.row import Row
    from pysampler.validation.summary import Summary, ValidationCell

_CAPTIONS = {
    "rates": "Dirty rate by calc-time: theory at the mean of the counted write rates (line), and"
    " what each method measured (bars: 95 % of what sampling and the writer's own randomness"
    " allow). A point below the line may be a writer that was slower then: figure 2 takes each"
    " measurement's own count. Crosses are published figures, where sizes match.",
    "deviations": "Deviation of sampling from theory, each measurement against the writes that"
    " were counted during it. The bars are the expected 95 %; about one in twenty should miss"
    " the line.",
    "slowdown": "What measuring costs the guest: the part of its writes a second that is lost"
    " while it is measured, against the quarter of a second before.",
}


def need_extras() -> None:
    """Refuse to measure for minutes what could not be drawn then; load what draws.

    Raises:
        MissingFeatureError: matplotlib or jinja2 is not installed.
    """
    for name in ("matplotlib", "jinja2"):
        if find_spec(name) is None:
            raise MissingFeatureError(f"needs {name}: pip install 'pysampler[validate]'")
    load_matplotlib()


def write_report(folder: str, rows: Sequence[Row], machine: dict[str, Any]) -> list[str]:
    """Write the report; return the names of its files.

    Args:
        folder: made when it is not there; what has the names of its files is replaced.
        rows: of one run.
        machine: as `pysampler.host.machine.facts` gives it.

    Raises:
        MissingFeatureError: matplotlib or jinja2 is not installed.
        PysamplerError: the folder cannot be written.
    """
    need_extras()
    figures = draw(cells(rows))
    svgs = {name: _image(figure, "svg") for name, figure in figures.items()}
    files: dict[str, bytes] = {
        "index.html": _page(rows, machine, svgs).encode(),
        "rows.jsonl": "".join(json.dumps(row.to_dict()) + "\n" for row in rows).encode(),
        "machine.json": (json.dumps(machine, indent=1) + "\n").encode(),
    }
    for name, figure in figures.items():
        files[f"{name}.svg"] = svgs[name]
        files[f"{name}.png"] = _image(figure, "png")
    with writing("the report"), Folder(folder) as opened:
        for name, content in files.items():
            opened.write(name, content)
    return list(files)


def make_folder(folder: str) -> None:
    """Make a report's folder, so that one that cannot be written is known before the measurement.

    Raises:
        PysamplerError: it cannot be written.
    """
    with writing(folder):
        Folder(folder).close()


def _image(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160)
    return buffer.getvalue()


def _page(rows: Sequence[Row], machine: dict[str, Any], svgs: dict[str, bytes]) -> str:

    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 (an extra)
    from markupsafe import Markup  # noqa: PLC0415

    def packaged(name: str) -> str:
        return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")

    method_summaries = summaries(rows)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True
    )
    return environment.from_string(packaged("report.html.j2")).render(
        # Our own markup: it is not escaped.
        style=Markup(packaged("report.css")),  # noqa: S704
        byline=_byline(rows, machine),
        findings=findings(rows, method_summaries),
        summaries=_summary_table(method_summaries),
        figures=[
            {"svg": Markup(_svg_element(image)), "caption": _CAPTIONS[name]}  # noqa: S704
            for name, image in svgs.items()
        ],
        cells=_cell_table(cells(rows)),
        facts=_facts(machine),
    )


def _svg_element(image: bytes) -> str:
    """Return an SVG file without what comes before its element."""
    svg = image.decode()
    return svg[svg.index("<svg") :]


def _byline(rows: Sequence[Row], machine: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"{when}. {len(rows)} measurements of a {rows[0].workload} writer on {machine['cpu']}"
        f" ({machine['cpus']} CPUs), Linux {machine['kernel']}, pysampler {machine['pysampler']}"
    )


def findings(rows: Sequence[Row], method_summaries: Sequence[Summary]) -> list[str]:
    """Return the findings, one sentence or two for each method."""
    sentences = []
    for summary in method_summaries:
        judgement = summary.judgement
        published = (
            f" (published: {summary.published_deviation:.1%})"
            if summary.published_deviation is not None
            else ""
        )
        verdict = "" if summary.method == DIRTY_BITMAP else f" This is {judgement.verdict}."
        sentences.append(
            f"{summary.method}, {format_size(summary.size)}: off theory by"
            f" {judgement.mean_deviation:.2%} in the mean{published} and"
            f" {judgement.worst_deviation:.2%} at worst; the writer lost {summary.slowed:.1%} of"
            f" its speed.{verdict}"
        )
    tracked = {row.tracking for row in rows if row.method == DIRTY_BITMAP}
    if tracked:
        sentences.append(f"Pages were tracked exactly by {', '.join(sorted(tracked))}.")
    sampled = [row for row in rows if row.method != DIRTY_BITMAP]
    assumed = at_the_assumed_rate(sampled)
    if assumed is not None:
        sentences.append(
            f"Had the asked rate of {sampled[0].asked_wps / 1e6:.3g} M writes a second been taken"
            f" for granted, sampling would seem to be off by {assumed.mean_deviation:+.1%} in the"
            f" mean: the writer really was {slower(assumed.slower)} than asked."
        )
    return sentences


class _Line(NamedTuple):
    """A line of a table: texts with their CSS classes."""

    cells: list[tuple[str, str]]
    first: bool = False  # of what belongs together


_Table = tuple[list[tuple[str, str]], list[_Line]]


def _summary_table(method_summaries: Sequence[Summary]) -> _Table:
    """Return titles and lines of the table by method and size."""
    lines = [
        _Line(
            [
                (summary.method, "name"),
                (format_size(summary.size), ""),
                (f"{summary.judgement.n_rows}", ""),
                (f"{summary.judgement.mean_deviation:.2%}", ""),
                (f"{summary.judgement.worst_deviation:.2%}", ""),
                (
                    "-"
                    if summary.published_deviation is None
                    else f"{summary.published_deviation:.1%}",
                    "",
                ),
                *_chi_square_cells(summary.judgement),
                (f"{summary.slowed:.1%}", ""),
            ]
        )
        for summary in method_summaries
    ]
    head = [
        ("method", "text"),
        ("size", ""),
        ("rows", ""),
        ("mean |dev.|", ""),
        ("worst", ""),
        ("published mean", ""),
        ("outside 95 %", ""),
        ("chi-square", ""),
        ("p", ""),
        ("writer slowed", ""),
    ]
    return head, lines


def _chi_square_cells(judgement: Judgement) -> list[tuple[str, str]]:
    if not judgement.n_judged:
        return [("-", "")] * 3
    return [
        (f"{judgement.n_outside} of {judgement.n_judged}", ""),
        (f"{judgement.chi_square:.1f}", ""),
        (f"{judgement.p_value:.2g}", "bad" if judgement.biased else "good"),
    ]


def _cell_table(found: Sequence[ValidationCell]) -> _Table:
    """Return titles and lines of the table of all cells."""
    lines = []
    before = None
    has_published = any(cell.published for cell in found)
    for cell in found:
        where = (cell.size, cell.calc_time_ms)
        is_exact = cell.method == DIRTY_BITMAP
        lines.append(
            _Line(
                [
                    (format_size(cell.size) if where != before else "", ""),
                    (str(cell.calc_time_ms) if where != before else "", ""),
                    (cell.method, "name"),
                    (f"{cell.wps / 1e6:.3f}", ""),
                    (f"{cell.theory:.0f}", ""),
                    (f"{cell.measured:.0f}", ""),
                    (f"{cell.deviation:+.2%}", ""),
                    ("-" if is_exact else f"{cell.sd:.1f}", ""),
                    ("-" if is_exact else f"{cell.z:+.1f}", ""),
                    (f"{cell.truth:.0f}", ""),
                    (f"{cell.truth_deviation:+.2%}", ""),
                    *(_published_cells(cell) if has_published else ()),
                ],
                first=where != before,
            )
        )
        before = where
    head = [
        ("size", ""),
        ("calc-time, ms", ""),
        ("method", "text"),
        ("M writes/s", ""),
        ("theory", ""),
        ("measured", ""),
        ("dev.", ""),
        ("sd", ""),
        ("z", ""),
        ("truth", ""),
        ("its dev.", ""),
        *([("published theory", ""), ("published", "")] if has_published else []),
    ]
    return head, lines


def _published_cells(cell: ValidationCell) -> list[tuple[str, str]]:
    figures = cell.published
    if figures is None:
        return [("", "")] * 2
    measured = figures.dirty_bitmap if cell.method == DIRTY_BITMAP else figures.page_sampling
    return [(str(figures.theory), ""), (str(measured), "")]


def _facts(machine: dict[str, Any]) -> list[tuple[str, str]]:
    shown = {
        **machine,
        "memory": format_size(machine["memory"]),
        "last-level-cache": format_size(machine["last-level-cache"]),
    }
    return [(key, "-" if value is None else str(value)) for key, value in shown.items()]
