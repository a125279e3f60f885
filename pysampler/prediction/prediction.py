# SPDX-License-Identifier: MIT
"""Prediction: migrations of a guest by bandwidth and downtime-limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pysampler.arguments import as_whole_number, is_real
from pysampler.errors import FormatError, UsageError
from pysampler.prediction import published
from pysampler.prediction.monotone import migrate_table
from pysampler.prediction.precopy_model import Precopy
from pysampler.prediction.unreadable import unreadable_samples
from pysampler.units import GIB, MAX_RATE, format_duration, parse_exact_ms, parse_rate
from pysampler.vector.measurement import Measurement, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pysampler.prediction.ensemble import Ensemble

Model = Literal["qemu", "published"]
Interval = tuple[float | None, float | None]

MEMBERS = 200
MAX_LIMIT_MS = 1e9
# The published table's bandwidths have factors of 1024: 1 Gbps is 2^30 bit/s there.
PUBLISHED_BANDWIDTHS = tuple(
    gigabits * GIB / 8 for gigabits in (100 / 1024, 1, 2, 2.5, 5, 10, 25, 40)
)
PUBLISHED_LIMITS_MS: tuple[float | None, ...] = (125, 250, 500, 1000, 5000, None)

# What the model of the loop misses on real migrations even when the dirty-page curve is known: as a
# share of the total time, and ms (of scheduling and of stopping the guest). From migrations that
# were recorded after the model was made (docs/prediction.md).
_RESIDUAL, _RESIDUAL_MS = 0.003, 10.0


@dataclass(frozen=True, slots=True)
class Cell:
    """One migration: medians and 5-95 % intervals over the guests that the vector could be of.

    Attributes:
        bandwidth: max-bandwidth, bytes per second.
        downtime_limit_ms: None for unlimited.
        total_ms: None where it does not converge more often than it does.
        total_ms_interval: an end is None where it does not converge; the interval itself is None
            where the model knows none.
        downtime_ms: of those that converge; None where none does. Likewise the following.
        downtime_ms_interval: 5 and 95 %.
        sent_bytes: all that went over the link.
        sent_bytes_interval: 5 and 95 %.
        iterations: passes over memory: the first, and one for each sync that found pages dirtied.
        iterations_interval: 5 and 95 %.
        p_converge: share of the guests whose migration ends before the deadline.
    """

    bandwidth: float
    downtime_limit_ms: float | None
    total_ms: float | None
    total_ms_interval: Interval | None
    downtime_ms: float | None
    downtime_ms_interval: Interval | None
    sent_bytes: float | None
    sent_bytes_interval: Interval | None
    iterations: int | None
    iterations_interval: Interval | None
    p_converge: float

    def to_dict(self) -> dict[str, Any]:
        """Return the cell's JSON object."""
        members: dict[str, Any] = {
            "bandwidth-bytes-per-s": _whole(self.bandwidth),
            "downtime-limit-ms": _whole(self.downtime_limit_ms),
        }
        for name in ("total-ms", "downtime-ms", "sent-bytes", "iterations"):
            value = getattr(self, name.replace("-", "_"))
            interval = getattr(self, name.replace("-", "_") + "_interval")
            members[name] = _whole(value)
            members[f"{name}-interval"] = interval and [_whole(end) for end in interval]
        return {**members, "p-converge": round(self.p_converge, 4)}


def _whole(value: float | None) -> int | float | None:
    """Return whole and large numbers as an int, others to a thousandth."""
    if value is None:
        return None
    return round(value) if value == int(value) or value > 1e7 else round(value, 3)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A table of migrations.

    Attributes:
        model: qemu or published.
        cells: all downtime-limits of the first bandwidth, then those of the second, and so on.
        fit: one line on how well the dirty-page curve explains the vector; None for published.
        ensemble: the guests that it was made from; None for published.
        seed: of the random numbers.
    """

    model: Model
    cells: tuple[Cell, ...]
    fit: str | None = None
    ensemble: Ensemble | None = field(default=None, repr=False, compare=False)
    seed: int = field(default=0, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction's JSON object."""
        table = {"model": self.model, "cells": [cell.to_dict() for cell in self.cells]}
        return table if self.fit is None else {**table, "fit": self.fit}


def predict(
    measurement: Measurement,
    bandwidth: float | str | Sequence[float | str] | None = None,
    downtime: float | str | Sequence[float | str | None] | None = None,
    *,
    model: Model = "qemu",
    precopy: Precopy | None = None,
    link: float | str | None = None,
    unfinished: bool = False,
    members: int = MEMBERS,
    seed: int = 0,
) -> Prediction:
    """Predict pre-copy migrations of the measured guest.

    Args:
        measurement: the vector.
        bandwidth: max-bandwidth, one or several: bytes per second, or text as ``10Gbps``. None: the
            bandwidths of the published table.
        downtime: downtime-limit, one or several: ms, or text as ``300ms`` or ``unlimited``; in a
            sequence None is unlimited too. None: the limits of the published table.
        model: ``qemu`` runs QEMU's own loop for ``members`` guests that the vector
            could be of; ``published`` is the recursion of the 2023 series.
        precopy: how the migration is set up; the defaults are QEMU's.
        link: short for the ``link`` of ``precopy``: what the last pass gets.
        unfinished: take a measurement whose status is not ``measured``, too.
        members: guests to draw; 5-95 % intervals need some dozens.
        seed: of the random numbers; the same seed gives the same prediction.

    Raises:
        FormatError: the measurement cannot be predicted from; the message names the key.
        UsageError: an argument that is none, or out of range; the message names it.
    """
    check_measurement(measurement, unfinished=unfinished)
    members, seed = checked_draw(members, seed)
    precopy = precopy or Precopy()
    if link is not None:
        precopy = precopy.with_link(as_rate(link, "link"))
    rates, limits = _rates(bandwidth), _limits(downtime)
    if not rates or not limits:
        raise UsageError("a bandwidth and a downtime are needed")
    if model == "published":
        grid = list(itertools.product(rates, limits))
        return Prediction(model, _published_cells(measurement, grid, precopy.deadline_ms))
    if model != "qemu":
        raise UsageError(f"model: {model!r} is not qemu or published")
    from pysampler.prediction.ensemble import build_ensemble  # noqa: PLC0415 - scipy, slow

    ensemble = build_ensemble(measurement, members, seed)
    outcomes = migrate_table(ensemble, precopy, rates, limits)
    cells = summarise(outcomes, rates, limits, seed)
    return Prediction(model, cells, ensemble.curve.quality, ensemble, seed)


def check_measurement(measurement: Measurement, *, unfinished: bool) -> None:
    """Refuse an inconsistent vector, and an unfinished one unless ``unfinished`` allows it.

    Raises:
        UsageError: it is no Measurement.
        FormatError: its numbers do not fit together, too few samples could be read, or the status
            is not ``measured``.
    """
    if not isinstance(measurement, Measurement):
        raise UsageError(f"measurement: a {type(measurement).__name__} is not a Measurement")
    # One that was put together by hand, too: without a rate, which is calculated and not read.
    unfinished_one = replace(measurement, status=Status.MEASURING)
    unreadable_samples(Measurement.from_dict(unfinished_one.to_dict()))
    if measurement.status is not Status.MEASURED and not unfinished:
        raise FormatError(
            f"status: {measurement.status.value!r}, not 'measured'; --unfinished takes it as it is"
        )


def checked_draw(members: int, seed: int) -> tuple[int, int]:
    """Return how many guests to draw, and the seed.

    Raises:
        UsageError: one is no whole number, or out of range.
    """
    members, seed = as_whole_number(members, "members"), as_whole_number(seed, "seed")
    if not 1 <= members <= 100_000:
        raise UsageError(f"members: {members} is not between 1 and 100000")
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"seed: {seed} is not between 0 and 2^64 - 1")
    return members, seed


def summarise(
    outcomes: NDArray[Any],
    bandwidths: Sequence[float],
    limits: Sequence[float | None],
    seed: int,
) -> tuple[Cell, ...]:
    """Return medians, intervals and probabilities.

    Args:
        outcomes: core.PRECOPY_OUTCOME, shape [members, bandwidths, limits].
        bandwidths: bytes per second.
        limits: downtime-limits in ms; None: unlimited.
        seed: of the model's own residual.
    """
    rng = np.random.default_rng([seed, 1])
    # One draw for a member in all cells: it must not change their order.
    factor, offset = rng.standard_normal((2, len(outcomes)))
    cells = []
    grid = itertools.product(bandwidths, limits)
    for column, (bandwidth, limit) in zip(outcomes.reshape(len(outcomes), -1).T, grid, strict=True):
        ended = column["converged"] > 0
        total = np.where(ended, column["total_ms"], np.inf)
        missed = total * (1 + _RESIDUAL * factor) + _RESIDUAL_MS * offset
        low, median, high = _quantiles(total, np.maximum(missed, column["downtime_ms"]))
        done = column[ended]
        downtime, sent, iterations = (
            _quantiles(done[name], done[name]) if len(done) else (None, None, None)
            for name in ("downtime_ms", "sent_bytes", "iterations")
        )
        cells.append(
            Cell(
                bandwidth=bandwidth,
                downtime_limit_ms=limit,
                total_ms=median,
                total_ms_interval=(low, high),
                downtime_ms=downtime[1],
                downtime_ms_interval=_ends(downtime),
                sent_bytes=sent[1],
                sent_bytes_interval=_ends(sent),
                iterations=None if iterations[1] is None else int(iterations[1]),
                iterations_interval=_ends(iterations),
                p_converge=float(ended.mean()),
            )
        )
    return tuple(cells)


def _quantiles(
    values: NDArray[Any], uncertain: NDArray[Any]
) -> tuple[float | None, float | None, float | None]:
    """Return 5 % of the uncertain values, the median of the values, 95 % of the uncertain ones."""
    # Observed values, not means of two: one of them may be infinite.
    median = np.quantile(values, 0.5, method="inverted_cdf")
    ends = np.quantile(uncertain, (0.05, 0.95), method="inverted_cdf")
    found = (min(ends[0], median), median, max(ends[1], median))
    low, middle, high = (float(value) if math.isfinite(value) else None for value in found)
    return low, middle, high


def _ends(quantiles: tuple[float | None, float | None, float | None]) -> Interval | None:
    return None if quantiles[1] is None else (quantiles[0], quantiles[2])


def _published_cells(
    measurement: Measurement, grid: Sequence[tuple[float, float | None]], deadline_ms: float
) -> tuple[Cell, ...]:
    curve = published.PublishedCurve(measurement)
    cells = []
    for bandwidth, limit in grid:
        found = published.migrate(curve, bandwidth, limit, deadline_ms)
        ended = found.converged
        cells.append(
            Cell(
                bandwidth=bandwidth,
                downtime_limit_ms=limit,
                total_ms=found.total_ms if ended else None,
                total_ms_interval=None,
                downtime_ms=found.downtime_ms if ended else None,
                downtime_ms_interval=None,
                sent_bytes=found.sent_bytes if ended else None,
                sent_bytes_interval=None,
                iterations=found.iterations if ended else None,
                iterations_interval=None,
                p_converge=float(ended),
            )
        )
    return tuple(cells)


def as_rate(value: float | str, what: str = "bandwidth") -> float:
    """Return bytes per second of a number or a text.

    Raises:
        UsageError: it is neither, or not a positive finite number.
    """
    if isinstance(value, str):
        return parse_rate(value, what)
    if not is_real(value) or not 0 < value <= MAX_RATE:
        raise UsageError(f"{what}: {value!r} is not between 0 and 10^15 bytes a second")
    return float(value)


def as_limit_ms(value: float | str | None, what: str = "downtime") -> float | None:
    """Return a downtime-limit in ms; None for ``unlimited``, infinity and None.

    Raises:
        UsageError: it is none.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value.strip() == "unlimited":
            return None
        if value.strip().replace(".", "", 1).isdigit():
            raise UsageError(f"{what}: {value.strip()[:24]!r} has no unit; write 300ms or 2s")
        value = parse_exact_ms(value, what)
    if is_real(value) and value == math.inf:
        return None
    if not is_real(value) or not 0 < value <= MAX_LIMIT_MS:
        raise UsageError(f"{what}: {value!r} ms is not between 0 and 10^9")
    return float(value)


def format_limit(ms: float | None) -> str:
    """Return a downtime-limit: ``300 ms``, ``2 s`` or ``unlimited``."""
    return "unlimited" if ms is None else format_duration(ms / 1000)


def _rates(given: float | str | Sequence[float | str] | None) -> list[float]:
    if given is None:
        return list(PUBLISHED_BANDWIDTHS)
    return [as_rate(rate) for rate in _several(given)]


def _limits(given: float | str | Sequence[float | str | None] | None) -> list[float | None]:
    if given is None:
        return list(PUBLISHED_LIMITS_MS)
    return [as_limit_ms(limit) for limit in _several(given)]


def _several(given: Any) -> Sequence[Any]:
    """Return a sequence as it is, and of anything else, also of text and bytes, one with it."""
    is_one = isinstance(given, (str, bytes, bytearray)) or not isinstance(given, Iterable)
    return [given] if is_one else list(given)
