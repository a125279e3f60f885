# SPDX-License-Identifier: MIT
"""The window of 100 ms in which the rate of a migration is limited and measured.

Source: QEMU 10, migration/migration.c and migration/migration-stats.c.
"""

from __future__ import annotations

from typing import NamedTuple

from pysampler.qemu.migration import WINDOW_MS, WINDOWS_PER_S


def budget(max_bandwidth: int) -> int:
    """Return the bytes that a window may send.

    Args:
        max_bandwidth: bytes a second; 0 for no limit.

    Returns:
        Bytes; 0 for no limit.
    """
    if not max_bandwidth:
        return 0
    return max(max_bandwidth // WINDOWS_PER_S, 1)


class WindowRates(NamedTuple):
    """Rates over one window.

    Attributes:
        sent_bytes: bytes flushed in it.
        bandwidth: bytes per ms.
        mbps: 10^6 bit/s.
        pages_per_second: zero pages, too.
    """

    sent_bytes: int
    bandwidth: float
    mbps: float
    pages_per_second: int


class RateWindow:
    """The window that is under way. Times are whole ms, as QEMU takes them.

    Args:
        now_ms: when the first one begins.
    """

    def __init__(self, now_ms: int) -> None:
        self._begin_ms = now_ms
        self._bytes = 0
        self._pages = 0

    @property
    def end_ms(self) -> int:
        """When it ends, at the earliest."""
        return self._begin_ms + WINDOW_MS

    def end(self, now_ms: int, transferred: int, pages: int) -> WindowRates | None:
        """End the window if its time has come, and begin the next one.

        Args:
            now_ms: the time.
            transferred: bytes flushed so far.
            pages: pages sent so far.

        Returns:
            The rates over the window; None while its time has not come.
        """
        if now_ms < self.end_ms:
            return None
        ms = now_ms - self._begin_ms
        sent = transferred - self._bytes
        rates = WindowRates(
            sent, sent / ms, sent * 8 / ms / 1000, int((pages - self._pages) * 1000 / ms)
        )
        self._begin_ms, self._bytes, self._pages = now_ms, transferred, pages
        return rates
