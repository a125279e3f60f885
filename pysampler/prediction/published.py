# SPDX-License-Identifier: MIT
"""The migration-time predictor of the 2023 series, as published.

Source: Andrei Gudkov, "Migration time prediction using calc-dirty-rate", qemu-devel 2023.

The predictor is a recursion over the iterations of pre-copy. The first iteration sends all pages.
Each later one sends the pages that got dirty during the one before it. The migration converges when
an iteration takes no longer than the downtime-limit. QEMU's real loop differs (precopy_model.py).

This module needs no NumPy.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

from pysampler.errors import FormatError
from pysampler.qemu.migration import PAGE_HEADER_BYTES

if TYPE_CHECKING:
    from pysampler.vector.measurement import Measurement

DEADLINE_MS = 3_600_000.0


class Outcome(NamedTuple):
    """The outcome of one migration. The iteration in which the deadline passes counts in full.

    Attributes:
        converged: whether an iteration fits into the downtime-limit.
        total_ms: duration of all iterations, ms.
        downtime_ms: duration of the last iteration, ms.
        sent_bytes: bytes sent in all iterations.
        iterations: number of iterations that send something.
    """

    converged: bool
    total_ms: float
    downtime_ms: float
    sent_bytes: float
    iterations: int


class PublishedCurve:
    """The dirty-page curve of the published predictor: lines that join the measured points.

    Before the first point the first line goes on, down to 0 pages at the least. After the last
    point the last line goes on until all pages that are not zero are dirty. Where it falls, the
    curve stays at the last point.

    Attributes:
        page_size: bytes of a page.
        zero_pages: zero pages of the guest.
        limit: pages of the guest that are not zero.

    Args:
        measurement: the vector. It must have samples and at least two periods, and no period may be
            equal to the one before it.

    Raises:
        FormatError: the vector is not like that; the message names the key.
    """

    def __init__(self, measurement: Measurement) -> None:
        times = [float(period) for period in measurement.periods]
        if not measurement.n_sampled_pages:
            raise FormatError("n-sampled-pages: 0; nothing was sampled")
        if len(times) < 2:
            raise FormatError(f"periods: {len(times)} of them; a line needs at least two")
        for before, after in pairwise(times):
            if after == before:
                raise FormatError(f"periods: {after:.15g} ms twice; no line goes through these two")
        sampled = measurement.n_sampled_pages / measurement.n_total_pages
        pages = [count / sampled for count in measurement.n_dirty_pages]
        self.page_size = measurement.page_size
        self.zero_pages = measurement.n_zero_pages / sampled
        self.limit = measurement.n_total_pages - self.zero_pages
        first_slope = (pages[1] - pages[0]) / (times[1] - times[0])
        self._times = [0.0, *times]
        # Unsorted, the first period that is late enough counts.
        self._latest = list(accumulate(self._times, max))
        self._pages = [max(0.0, pages[0] - first_slope * times[0]), *pages]
        self._last_slope = (pages[-1] - pages[-2]) / (times[-1] - times[-2])

    def __call__(self, ms: float) -> float:
        """Return the pages of the guest that are dirty ``ms`` milliseconds after the baseline."""
        times, pages = self._times, self._pages
        i = bisect_left(self._latest, ms)
        if i < len(times):
            left, right = times[i - 1], times[i]
            if ms == right:
                return pages[i]
            return pages[i - 1] + (pages[i] - pages[i - 1]) * (ms - left) / (right - left)
        if self._last_slope <= 0:
            return pages[-1]
        return min(self.limit, pages[-1] + self._last_slope * (ms - times[-1]))


def migrate(
    curve: PublishedCurve,
    bandwidth: float,
    downtime_limit_ms: float | None,
    deadline_ms: float = DEADLINE_MS,
) -> Outcome:
    """Run the published recursion.

    Args:
        curve: the dirty-page curve.
        bandwidth: rate of the link, bytes per second.
        downtime_limit_ms: downtime-limit, ms. None: unlimited.
        deadline_ms: time after which the migration counts as one that does not converge, ms.
    """
    limit = float("inf") if downtime_limit_ms is None else downtime_limit_ms
    total, total_bytes = 0.0, 0.0
    nonzero, zero = curve.limit, curve.zero_pages
    # An iteration as long as an earlier one repeats all that followed, without end. Brent's
    # algorithm finds that ("An improved Monte Carlo factorization algorithm", BIT 20, 1980), so a
    # migration that hangs takes no thousands of rounds.
    remembered, remember_at, iterations = -1.0, 1, 0
    while True:
        # Of a zero page the published recursion counts the header alone.
        sent = nonzero * (curve.page_size + PAGE_HEADER_BYTES) + zero * PAGE_HEADER_BYTES
        duration = sent / bandwidth * 1000
        total += duration
        total_bytes += sent
        iterations += sent > 0
        # In this order: an iteration that fits the limit ends the migration, however late.
        if duration <= limit:
            return Outcome(True, total, duration, total_bytes, iterations)
        if total > deadline_ms or duration == remembered:
            return Outcome(False, total, duration, total_bytes, iterations)
        if iterations == remember_at:
            remembered, remember_at = duration, 2 * remember_at
        nonzero, zero = curve(duration), 0.0
