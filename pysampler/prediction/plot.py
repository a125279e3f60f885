# SPDX-License-Identifier: MIT
"""A prediction as a picture: the dirty-page curve, time against bandwidth, one migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.prediction.ensemble import build_ensemble
from pysampler.prediction.monotone import migrate_table
from pysampler.prediction.prediction import MEMBERS, format_limit, predict, summarise
from pysampler.units import GIB, format_rate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pysampler.prediction.ensemble import Ensemble
    from pysampler.prediction.precopy_model import Precopy
    from pysampler.prediction.prediction import Prediction
    from pysampler.vector.intervals import FloatArray
    from pysampler.vector.measurement import Measurement

_BLUE, _GREY, _RED = "#1f5a96", "#8a8a8a", "#b3423a"
_BANDWIDTHS = 40
_MOST_LINES = 6


def draw_prediction(measurement: Measurement, prediction: Prediction, precopy: Precopy) -> Figure:
    """Return a figure of a prediction.

    Args:
        measurement: the vector.
        prediction: made from it.
        precopy: how the migrations were set up.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    # The published model has no ensemble: its curve and rounds are those of the model qemu.
    ensemble = prediction.ensemble or build_ensemble(measurement, MEMBERS, seed=0)
    figure = Figure(figsize=(15, 4.6), layout="constrained", dpi=110)
    curve, times, rounds = figure.subplots(1, 3)
    _draw_curve(curve, measurement, ensemble)
    _draw_times(times, measurement, prediction, precopy, ensemble)
    _draw_rounds(rounds, ensemble, prediction, precopy)
    for axes in (curve, times, rounds):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    return figure


def _draw_curve(axes: Axes, measurement: Measurement, ensemble: Ensemble) -> None:
    gib = measurement.page_size / GIB
    points = measurement.curve()
    t = np.geomspace(points.seconds[0] / 3, points.seconds[-1] * 2, 200)
    members = np.array([member(t) for member in ensemble.members])
    low, high = np.quantile(members, (0.05, 0.95), axis=0)
    axes.fill_between(t, low * gib, high * gib, color=_BLUE, alpha=0.2, label="5 .. 95 %")
    axes.plot(t, ensemble.curve(t) * gib, color=_BLUE, label="fit")
    bars = np.array([points.dirty_pages - points.low, points.high - points.dirty_pages])
    axes.errorbar(
        points.seconds,
        points.dirty_pages * gib,
        yerr=np.maximum(0, bars) * gib,
        fmt="o",
        markersize=3.5,
        color="black",
        linewidth=0.8,
        label="measured, 95 %",
    )
    axes.axhline(ensemble.curve.nonzero_pages * gib, color=_GREY, linestyle=":", label="not zero")
    axes.set(xscale="log", yscale="log", xlabel="time, s", ylabel="dirty memory, GiB")
    axes.set_title("Dirty-page curve")
    axes.legend(frameon=False, fontsize=8)


def _draw_times(
    axes: Axes,
    measurement: Measurement,
    prediction: Prediction,
    precopy: Precopy,
    ensemble: Ensemble,
) -> None:
    """Total time against bandwidth, one line per downtime-limit."""
    limits = list(dict.fromkeys(cell.downtime_limit_ms for cell in prediction.cells))
    if len(limits) > _MOST_LINES:
        limits = limits[:_MOST_LINES]
    rates = [cell.bandwidth for cell in prediction.cells]
    low, high = min(rates), max(rates)
    if high < 4 * low:
        low, high = low / 4, high * 4
    bandwidths = list(np.geomspace(low, high, _BANDWIDTHS))
    if prediction.model == "qemu":
        outcomes = migrate_table(ensemble, precopy, bandwidths, limits)
        cells = summarise(outcomes, bandwidths, limits, prediction.seed)
    else:
        cells = predict(
            measurement, bandwidths, limits,
            model="published", precopy=precopy, unfinished=True,
        ).cells  # fmt: skip
    gbps = np.multiply(bandwidths, 8e-9)
    for i, limit in enumerate(limits):
        row = cells[i :: len(limits)]
        total = _seconds([cell.total_ms for cell in row])
        colour = f"C{i}"
        axes.plot(gbps, total, color=colour, label=format_limit(limit))
        intervals = [cell.total_ms_interval or (None, None) for cell in row]
        axes.fill_between(
            gbps,
            _seconds([interval[0] for interval in intervals]),
            _seconds([interval[1] for interval in intervals]),
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.set(xlabel="bandwidth, Gbit/s", ylabel="total time, s")
    if any(cell.total_ms is not None for cell in cells):
        axes.set(xscale="log", yscale="log")
    else:  # of nothing there is no logarithm
        axes.text(0.5, 0.5, "none converges", transform=axes.transAxes, ha="center")
    axes.set_title(f"Total time, model {prediction.model}")
    axes.legend(title="downtime-limit", frameon=False, fontsize=8)


def _seconds(values: list[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value / 1000 for value in values])


def _draw_rounds(axes: Axes, ensemble: Ensemble, prediction: Prediction, precopy: Precopy) -> None:
    """Draw what remained after each bitmap sync of the most telling migration."""
    # The one with most passes that still converges shows most; else any.
    cell = max(
        prediction.cells,
        key=lambda cell: (cell.p_converge >= 0.5, cell.iterations or 0),
    )
    parameters = precopy.parameters(ensemble.page_size)
    grid = precopy.cells([(cell.bandwidth, cell.downtime_limit_ms)])
    guests = ensemble.arrays
    outcomes = core.precopy_grid(parameters, guests, grid)[:, 0]
    # The guest in the middle, so that the picture is of one that can happen.
    order = np.argsort(np.where(outcomes["converged"] > 0, outcomes["total_ms"], np.inf))
    middle = guests.part(slice(order[len(order) // 2], order[len(order) // 2] + 1))
    outcome, rounds = core.precopy_rounds(parameters, middle, grid, 10_000)
    gib = ensemble.page_size / GIB
    guest = middle.guests[0]
    seconds = np.append(0.0, rounds["now_ms"][1:] / 1000)
    remaining = rounds["remaining_pages"] * gib
    remaining[0] = (guest["nonzero_pages"] + guest["zero_pages"]) * gib
    axes.step(seconds, remaining, where="post", color=_BLUE, marker="o", markersize=3)
    ends = outcome["total_ms"][0] / 1000
    if outcome["converged"][0]:
        axes.axvline(ends, color=_RED, label=f"ends after {ends:.3g} s")
    thresholds = rounds["threshold_bytes"][1:]
    if cell.downtime_limit_ms is not None and len(thresholds):
        axes.axhline(thresholds[-1] / GIB, color=_GREY, linestyle=":", label="threshold")
    axes.set(yscale="log", xlabel="time, s", ylabel="remaining after a sync, GiB")
    axes.set_title(
        f"One migration, model qemu: {format_rate(cell.bandwidth)}, "
        f"{format_limit(cell.downtime_limit_ms)}"
    )
    if axes.get_legend_handles_labels()[1]:  # one that neither ends nor syncs has none
        axes.legend(frameon=False, fontsize=8)
