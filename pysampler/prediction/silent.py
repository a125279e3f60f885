# SPDX-License-Identifier: MIT
"""Silent writers: pages that are written with what they already hold.

Such pages are clean to a hash, and dirty to a migration. A vector of samples cannot show them. A
vector of exact tracking of the same guest can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler.errors import FormatError
from pysampler.vector.measurement import Measurement, Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_OTHERS = 100
_TELLING = 1.25  # beyond the samples' own interval: a guest is not quite as busy each time


def silent_writers(vector: Measurement, others: Sequence[dict[str, Any]]) -> str | None:
    """Return a warning where exact tracking saw more pages written than change.

    Args:
        vector: the one in hand.
        others: JSON objects of vectors that came with it; of other guests they are ignored.
    """
    for other in _like(vector, others[-_MOST_OTHERS:]):
        sampled, exact = (vector, other) if _is_sampled(vector) else (other, vector)
        points, tracked = sampled.curve(), exact.curve()
        seconds = min(points.seconds[-1], tracked.seconds[-1])
        high = float(np.interp(seconds, points.seconds, points.high))
        # Before its first period a curve is not known: that would say too much.
        if seconds < max(points.seconds[0], tracked.seconds[0]):
            continue
        written = float(np.interp(seconds, tracked.seconds, tracked.dirty_pages))
        if written > _TELLING * max(high, 1.0):
            cure = (
                "predict from that vector" if sampled is vector else "this prediction counts them"
            )
            return (
                f"silent writers: exact tracking saw {written:.0f} pages written in {seconds:.3g} s"
                f" where at most {high:.0f} changed; a migration sends them all: {cure}"
            )
    return None


def _like(vector: Measurement, others: Sequence[dict[str, Any]]) -> list[Measurement]:
    """Return those of the same guest, taken the other way, last first."""
    found = []
    for each in reversed(others):
        try:
            other = Measurement.from_dict(each)
        except FormatError:
            continue
        same = (other.n_total_pages, other.page_size) == (vector.n_total_pages, vector.page_size)
        usable = other.periods and other.n_sampled_pages and vector.periods
        if same and usable and vector.n_sampled_pages and _is_sampled(other) != _is_sampled(vector):
            found.append(other)
    return found


def _is_sampled(vector: Measurement) -> bool:
    return vector.mode is Mode.PAGE_SAMPLING
