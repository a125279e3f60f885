# SPDX-License-Identifier: MIT
"""The figures of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pysampler.errors import MissingFeatureError
from pysampler.units import format_size
from pysampler.validation.theory import dirty_rate
from pysampler.validation.workload import WORKLOADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pysampler.validation.summary import ValidationCell

# Okabe and Ito's colours, which people with colour-blindness tell apart.
_COLOURS = {"fast": "#0072B2", "qemu": "#D55E00", "qemu-7": "#CC79A7", "dirty-bitmap": "#009E73"}
_MARKERS = {"fast": "o", "qemu": "s", "qemu-7": "D", "dirty-bitmap": "^"}
_GREY = "#666666"


def draw(cells: Sequence[ValidationCell]) -> dict[str, Figure]:
    """Return the figures by name: ``rates``, ``deviations`` and ``slowdown``.

    Raises:
        MissingFeatureError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and an extra
    except ImportError as error:
        raise MissingFeatureError(
            "a report needs matplotlib; pip install 'pysampler[validate]'"
        ) from error
    sizes = sorted({cell.size for cell in cells})
    figures = {}
    for name, panel, height in (
        ("rates", _rates, 3.6),
        ("deviations", _deviations, 3.2),
        ("slowdown", _slowdown, 2.8),
    ):
        figure = Figure(figsize=(max(4.6 * len(sizes), 6.4), height), layout="constrained")
        panels = figure.subplots(1, len(sizes), squeeze=False)[0]
        for axes, size in zip(panels, sizes, strict=True):
            of_size = [cell for cell in cells if cell.size == size]
            panel(axes, of_size)
            axes.set_title(format_size(size), fontsize="medium")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25, linewidth=0.6)
            axes.set_axisbelow(True)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        figures[name] = figure
    return figures


def _methods(cells: Sequence[ValidationCell]) -> list[tuple[str, list[ValidationCell]]]:
    names = dict.fromkeys(cell.method for cell in cells)
    return [(name, [cell for cell in cells if cell.method == name]) for name in names]


def _rates(axes: Axes, cells: Sequence[ValidationCell]) -> None:
    _draw_theory(axes, cells)
    for name, of_method in _methods(cells):
        axes.errorbar(
            [cell.calc_time_ms for cell in of_method],
            [cell.measured for cell in of_method],
            [1.96 * cell.sd for cell in of_method],
            fmt=_MARKERS[name],
            color=_COLOURS[name],
            markersize=4.5,
            markerfacecolor="none" if name == "qemu" else _COLOURS[name],
            capsize=2,
            linewidth=0.9,
            label=name,
        )
    known = [(cell.calc_time_ms, cell.published) for cell in cells if cell.published]
    if known:
        times = sorted({time for time, _ in known})
        figures = dict(known)
        for marker, field, label in (("x", 1, "published sampling"), ("+", 2, "published bitmap")):
            axes.plot(
                times,
                [figures[time][field] for time in times if figures[time]],
                marker,
                color=_GREY,
                markersize=5,
                label=label,
            )
    axes.set_xscale("log")
    _label_times(axes, cells)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("dirty rate, MiB/s")


def _draw_theory(axes: Axes, cells: Sequence[ValidationCell]) -> None:
    """Draw theory at the mean rate of the sampled rows; each row has its own in the table."""
    sampled = [cell for cell in cells if cell.method != "dirty-bitmap"] or list(cells)
    wps = float(np.mean([cell.wps for cell in sampled]))
    times = [cell.calc_time_ms for cell in cells]
    span = np.geomspace(min(times) * 0.9, max(times) * 1.1, 80)
    row = cells[0].rows[0]
    writer = WORKLOADS[row.workload]
    pages = [writer.distinct(row.n_pages, wps * ms / 1000).mean for ms in span]
    rates = [dirty_rate(n, ms / 1000) for n, ms in zip(pages, span, strict=True)]
    axes.plot(span, rates, color="black", linewidth=1, label="theory")


def _label_times(axes: Axes, cells: Sequence[ValidationCell]) -> None:
    times = sorted({cell.calc_time_ms for cell in cells})
    axes.set_xticks(times, [str(time) for time in times], rotation=45, fontsize="small")
    axes.set_xticks([], minor=True)
    axes.set_xlabel("calc-time, ms")


def _deviations(axes: Axes, cells: Sequence[ValidationCell]) -> None:
    """Draw deviations from theory in percent, over the interval that sampling allows."""
    sampled = [pair for pair in _methods(cells) if pair[0] != "dirty-bitmap"]
    for which, (name, of_method) in enumerate(sampled):
        shift = 1 + 0.03 * (which - (len(sampled) - 1) / 2)
        times = [cell.calc_time_ms * shift for cell in of_method]
        axes.errorbar(
            times,
            [100 * cell.deviation for cell in of_method],
            [196 * cell.sd / cell.theory for cell in of_method],
            fmt=_MARKERS[name],
            color=_COLOURS[name],
            markersize=4.5,
            markerfacecolor="none" if name == "qemu" else _COLOURS[name],
            capsize=2,
            linewidth=0.9,
            label=name,
        )
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xscale("log")
    _label_times(axes, cells)
    axes.set_ylabel("measured less theory, %")


def _slowdown(axes: Axes, cells: Sequence[ValidationCell]) -> None:
    for name, of_method in _methods(cells):
        axes.plot(
            [cell.calc_time_ms for cell in of_method],
            [100 * cell.slowed for cell in of_method],
            _MARKERS[name] + "-",
            color=_COLOURS[name],
            markersize=4,
            linewidth=0.9,
            label=name,
        )
    axes.axhline(0, color="black", linewidth=1)
    axes.set_xscale("log")
    _label_times(axes, cells)
    axes.set_ylabel("writes lost, %")
