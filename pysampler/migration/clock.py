# SPDX-License-Identifier: MIT
"""The machine's clock, for a thread that sleeps until something else may happen."""

from __future__ import annotations

import threading

from pysampler.clock import MonotonicClock


class WakeableClock(MonotonicClock):
    """CLOCK_MONOTONIC; once `wake` has been called nobody sleeps any more."""

    def __init__(self) -> None:
        self._awake = threading.Event()

    def wait_until(self, deadline_ns: int) -> None:
        """Sleep until the deadline, or `wake`."""
        remaining_ns = deadline_ns - self.now_ns()
        if remaining_ns > 0:
            self._awake.wait(remaining_ns / 1e9)

    def wake(self) -> None:
        """End all sleep; from any thread."""
        self._awake.set()
