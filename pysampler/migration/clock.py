# SPDX-License-Identifier: MIT
"""Time as an argument, for a thread that sleeps until something else may happen."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class MigrationClock(Protocol):
    """A clock whose sleeper can be woken."""

    def now_ns(self) -> int:
        """Return the time of a clock that never goes back, in ns."""

    def wait_until(self, deadline_ns: int) -> None:
        """Return when the deadline is past, or somebody wakes it."""


class WakeableClock:
    """CLOCK_MONOTONIC; once `wake` has been called nobody sleeps any more."""

    def __init__(self) -> None:
        self._awake = threading.Event()

    def now_ns(self) -> int:
        """Return CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def wait_until(self, deadline_ns: int) -> None:
        """Sleep until the deadline, or `wake`."""
        remaining_ns = deadline_ns - time.monotonic_ns()
        if remaining_ns > 0:
            self._awake.wait(remaining_ns / 1e9)

    def wake(self) -> None:
        """End all sleep; from any thread."""
        self._awake.set()
