# SPDX-License-Identifier: MIT
"""The report: one HTML page that needs nothing else, its figures, and the raw rows."""

from __future__ import annotations

import io
import json
import time
from html import escape
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pysampler.errors import MissingFeatureError
from pysampler.host.figures import load_matplotlib
from pysampler.host.writer import Folder, writing
from pysampler.units import format_size
from pysampler.validation.judgement import Judgement, at_the_assumed_rate, slower
from pysampler.validation.plots import draw
from pysampler.validation.row import DIRTY_BITMAP
from pysampler.validation.summary import cells, summaries

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.figure import Figure

    from pysampler.validation.row import Row
    from pysampler.validation.summary import Cell, Summary

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
        MissingFeatureError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingFeatureError("needs matplotlib: pip install 'pysampler[validate]'")
    load_matplotlib()


def write_report(folder: str, rows: Sequence[Row], machine: dict[str, Any]) -> list[str]:
    """Write the report; return the names of its files.

    Args:
        folder: made when it is not there; what has the names of its files is replaced.
        rows: of one run.
        machine: as `pysampler.host.machine.facts` gives it.

    Raises:
        MissingFeatureError: matplotlib is not installed.
        PysamplerError: the folder cannot be written.
    """
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
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    found = cells(rows)
    said = summaries(rows)
    parts = [
        "<h1>Page sampling against theory and the truth</h1>",
        f'<p class="byline">{escape(_byline(rows, machine))}</p>',
        "<ul>",
        *(f"<li>{escape(sentence)}</li>" for sentence in findings(rows, said)),
        "</ul>",
        _summary_table(said),
    ]
    for number, (name, image) in enumerate(svgs.items(), 1):
        svg = image.decode()
        parts.append(
            f"<figure>{svg[svg.index('<svg') :]}"
            f"<figcaption><b>Figure {number}.</b> {escape(_CAPTIONS[name])}</figcaption></figure>"
        )
    parts += [
        "<h2>All cells</h2>",
        _cell_table(found),
        _METHOD,
        "<h2>The machine</h2>",
        _facts(machine),
        _FILES,
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<title>Page sampling against theory</title>"
        f"<style>\n{style}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


_METHOD = """
<h2>How it was measured</h2>
<p>One emulated vCPU writes its guest's memory and counts its writes in shared memory. The counter
is read where the baseline pass and the compare pass start; theory is the expected number of
distinct pages after the writes counted between the two, so that no rate is assumed. Calc-times,
methods and repeats come in shuffled order.</p>
<p><i>sd</i> is the standard deviation that theory expects of the measured rate: that of the
sample together with that of the writer. <i>z</i> is the deviation in these units. A row takes
part in the chi-square when at least five dirty and five clean samples are expected; elsewhere z
is too skewed.</p>
<p>Exact tracking has no sampling error, so no z: it differs from theory by what is written while
tracking is switched on and read out.</p>
<p>The <i>truth</i> is what the guest itself notes, the time of each page's last write, looked up
just before the compare pass, and compared with the theory of the writes counted until then.</p>
"""

_FILES = """
<p class="note">Beside this page: the raw rows as JSON Lines (rows.jsonl), the machine
(machine.json), and the figures as SVG and PNG.</p>
"""


def _byline(rows: Sequence[Row], machine: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"{when}. {len(rows)} measurements of a {rows[0].workload} writer on {machine['cpu']}"
        f" ({machine['cpus']} CPUs), Linux {machine['kernel']}, pysampler {machine['pysampler']}"
    )


def findings(rows: Sequence[Row], said: Sequence[Summary]) -> list[str]:
    """Return the findings, one sentence or two for each method."""
    sentences = []
    for summary in said:
        judgement = summary.judgement
        published = (
            f" (published: {summary.published_deviation:.1%})"
            if summary.published_deviation is not None
            else ""
        )
        said_of = "" if summary.method == DIRTY_BITMAP else f" This is {judgement.verdict}."
        sentences.append(
            f"{summary.method}, {format_size(summary.size)}: off theory by"
            f" {judgement.mean_deviation:.2%} in the mean{published} and"
            f" {judgement.worst_deviation:.2%} at worst; the writer lost {summary.slowed:.1%} of"
            f" its speed.{said_of}"
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


def _summary_table(said: Sequence[Summary]) -> str:
    lines = [
        _row(
            _cell(summary.method, "name"),
            _cell(format_size(summary.size)),
            _cell(f"{summary.judgement.n_rows}"),
            _cell(f"{summary.judgement.mean_deviation:.2%}"),
            _cell(f"{summary.judgement.worst_deviation:.2%}"),
            _cell(
                "-" if summary.published_deviation is None else f"{summary.published_deviation:.1%}"
            ),
            *_chi_square_cells(summary.judgement),
            _cell(f"{summary.slowed:.1%}"),
        )
        for summary in said
    ]
    head = (
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
    )
    return _table(
        "Table 1. Deviation from theory at the counted rate, by method and size.", head, lines
    )


def _chi_square_cells(judgement: Judgement) -> list[str]:
    if not judgement.n_judged:
        return [_cell("-")] * 3
    return [
        _cell(f"{judgement.n_outside} of {judgement.n_judged}"),
        _cell(f"{judgement.chi_square:.1f}"),
        _cell(f"{judgement.p_value:.2g}", "bad" if judgement.biased else "good"),
    ]


def _cell_table(found: Sequence[Cell]) -> str:
    lines = []
    before = None
    has_published = any(cell.published for cell in found)
    for cell in found:
        where = (cell.size, cell.calc_time_ms)
        lines.append(
            _row(
                _cell(format_size(cell.size) if where != before else ""),
                _cell(str(cell.calc_time_ms) if where != before else ""),
                _cell(cell.method, "name"),
                _cell(f"{cell.wps / 1e6:.3f}"),
                _cell(f"{cell.theory:.0f}"),
                _cell(f"{cell.measured:.0f}"),
                _cell(f"{cell.deviation:+.2%}"),
                _cell("-" if cell.method == DIRTY_BITMAP else f"{cell.sd:.1f}"),
                _cell("-" if cell.method == DIRTY_BITMAP else f"{cell.z:+.1f}"),
                _cell(f"{cell.truth:.0f}"),
                _cell(f"{cell.truth_deviation:+.2%}"),
                *(_published_cells(cell) if has_published else ()),
                first=where != before,
            )
        )
        before = where
    head = (
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
        *((("published theory", ""), ("published", "")) if has_published else ()),
    )
    return _table("Table 2. Rates in MiB/s, means over repeats.", head, lines)


def _published_cells(cell: Cell) -> list[str]:
    figures = cell.published
    if figures is None:
        return [_cell("")] * 2
    measured = figures.dirty_bitmap if cell.method == DIRTY_BITMAP else figures.page_sampling
    return [_cell(str(figures.theory)), _cell(str(measured))]


def _table(caption: str, head: Iterable[tuple[str, str]], lines: Iterable[str]) -> str:
    titles = "".join(f'<th class="{kind}">{escape(title)}</th>' for title, kind in head)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _row(*fields: str, first: bool = False) -> str:
    return f"<tr{' class=first' if first else ''}>{''.join(fields)}</tr>"


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _facts(machine: dict[str, Any]) -> str:
    shown = {
        **machine,
        "memory": format_size(machine["memory"]),
        "last-level-cache": format_size(machine["last-level-cache"]),
    }
    return (
        "<dl>"
        + "".join(
            f"<dt>{escape(key)}</dt><dd>{escape('-' if value is None else str(value))}</dd>"
            for key, value in shown.items()
        )
        + "</dl>"
    )
