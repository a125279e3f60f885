# SPDX-License-Identifier: MIT
"""Post-copy: the page requests of a guest, and the time for which they block its vCPUs.

The guest runs on the destination. The pages that got dirty in the pass of pre-copy before are still
on the source. They come to the destination in two ways:

- The source pushes them in the background, at the rate of the link.
- The guest touches a page that is still missing. It is fetched by a page request, and the vCPU
  waits for the round trip.

The model is a differential equation of the missing pages (see `postcopy`). Euler's method solves it
in equal steps: 4000 of them are the time that pushing alone would take. The model is this project's
own.
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
    """The cost of post-copy.

    Fetches and times of waiting are lower bounds: a vector tells of writes, and reads of missing
    pages wait as well.

    Attributes:
        pages: pages that are still on the source when the guest starts on the destination.
        fetches: expected number of page requests.
        fetch_s: duration of one page request, s.
        total_wait_s: sum of the durations of all page requests, s.
        blocktime_s: time for which each vCPU is blocked, s.
        duration_s: time from the start on the destination until every page is there, s.
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

    The share of the pages that is missing falls by the pages that are pushed and fetched:

        d missing / dt = -(push + v x r) / pages

    - push is the number of pages that the link carries in a second.
    - v is the number of vCPUs.
    - r is the rate at which a vCPU that runs touches missing pages, per second.
    - x = 1 / (1 + r fetch) is the share of the time in which a vCPU runs, where fetch is the
      duration of a page request.

    Args:
        curve: dirty-page curve of the guest.
        bandwidth: rate of the link, bytes per second.
        page_bytes: bytes of a page on the wire.
        latency_s: round-trip time of the link, s.
        precopy_s: duration of the pass of pre-copy before, s.
        vcpus: number of the guest's vCPUs. They are taken to write equally much.
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
