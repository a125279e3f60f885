# SPDX-License-Identifier: MIT
"""Time as an argument, so that a test gives the sampler a clock of its own and never sleeps."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The sampler's interface to time."""

    def now_ns(self) -> int:
        """Return the time of a clock that never goes back, in ns."""

    def wait_until(self, deadline_ns: int) -> None:
        """Return as soon as possible after ``deadline_ns``."""


class MonotonicClock:
    """The machine's own CLOCK_MONOTONIC."""

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def wait_until(self, deadline_ns: int) -> None:
        """Sleep until the deadline."""
        remaining_ns = deadline_ns - time.monotonic_ns()
        if remaining_ns > 0:
            time.sleep(remaining_ns / 1e9)
