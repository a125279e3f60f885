# SPDX-License-Identifier: MIT
"""Post-copy: how many pages the guest fetches over the network, and how long it waits for them.

The guest runs on the destination while the pages that were dirtied in the last pass are still on
the source. They are pushed in the background at the link's speed; one that the guest
touches before is fetched, and its vCPU waits for the round trip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pysampler.prediction.curve import dirty_share

if TYPE_CHECKING:
    from pysampler.prediction.curve import DirtyCurve
    from pysampler.vector.intervals import FloatArray

_STEPS = 4000
_SERVICE_S = 50e-6  # userfaultfd, request and placement besides wire and latency


@dataclass(frozen=True, slots=True)
class PostCopy:
    """What post-copy costs; a lower bound, since a vector tells of writes and not of reads.

    Attributes:
        pages: left to send when the guest starts on the destination.
        fetches: expected page fetches.
        fetch_s: one of them.
        total_wait_s: all waits together.
        blocktime_s: how long each vCPU is blocked.
        duration_s: until every page is there.
    """

    pages: float
    fetches: float
    fetch_s: float
    total_wait_s: float
    blocktime_s: float
    duration_s: float


def postcopy(
    curve: DirtyCurve,
    *,
    bandwidth: float,
    page_bytes: float,
    latency_s: float,
    precopy_s: float,
    vcpus: int,
) -> PostCopy:
    """Predict post-copy after one pass of pre-copy.

    The share of pages that is still missing falls by what is pushed and what is fetched:
    d missing / dt = -(push + v x r) / pages, with v vCPUs, r the rate at which one that
    runs touches missing pages, and x = 1 / (1 + r fetch) the share of the time it runs.

    Args:
        curve: the guest's writes.
        bandwidth: bytes per second.
        page_bytes: of a page on the wire.
        latency_s: round trip.
        precopy_s: length of the pass before.
        vcpus: of the guest; its writes are shared among them evenly.
    """
    pages = float(curve(np.asarray(precopy_s)))
    push, fetch = bandwidth / page_bytes, latency_s + page_bytes / bandwidth + _SERVICE_S
    step = pages / push / _STEPS
    missing, ran, fetches, blocked, now = 1.0, 0.0, 0.0, 0.0, 0.0
    touch = _first_touches(curve, precopy_s, step)
    while pages > 0 and missing > 0.5 / pages and now < 2 * pages / push:
        rate = touch[min(len(touch) - 1, int(ran / step))] * missing / vcpus
        running = 1 / (1 + rate * fetch)
        fetched = vcpus * running * rate * step
        missing -= (push * step + fetched) / pages
        fetches += fetched
        blocked += (1 - running) * step
        ran += running * step
        now += step
    return PostCopy(pages, fetches, fetch, fetches * fetch, blocked, now)


def _first_touches(curve: DirtyCurve, precopy_s: float, step: float) -> FloatArray:
    """Return, for each step of the guest's own time, the first writes per second to left pages."""
    times: FloatArray = np.arange(_STEPS + 2, dtype=np.float64) * step
    if step <= 0:
        return np.zeros(1)
    if curve.interpolated:
        touched = curve(times) * (curve(np.asarray(precopy_s)) / max(curve.knots_pages[-1], 1e-9))
        return np.asarray(np.diff(touched) / step)
    rates = np.zeros(len(times) - 1)
    for component in curve.components:
        left = component.pages * dirty_share(component.kind, np.asarray(component.rate * precopy_s))
        rates += np.diff(left * dirty_share(component.kind, component.rate * times)) / step
    return rates
