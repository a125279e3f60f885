# SPDX-License-Identifier: MIT
"""Pre-copy: sends all RAM while the guest runs, then what it has dirtied, until little is left.

Source of the rules: QEMU 10, migration/migration.c (windows, threshold, the decision) and
migration/ram.c (bitmap, syncs, iterations).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from pysampler.core import SendEnd, mark_dirty
from pysampler.migration.stream import IterationEnd, encode
from pysampler.migration.window import RateWindow, budget
from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.qemu.migration import ITERATION_MS, STATISTICS_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pysampler.clock import Clock
    from pysampler.core import PageSender
    from pysampler.migration.convergence import Control
    from pysampler.migration.settings import Settings

_MS = 1_000_000
# A window that sent less says nothing about the bandwidth (migration/migration.c).
_LEAST_WINDOW_BYTES = 10_000


class DirtySource(Protocol):
    """Tells which pages were written."""

    def take(self) -> Sequence[NDArray[np.uint64]]:
        """Return by block the pages written since the last call, a bit each."""


def all_dirty(n_pages: int) -> NDArray[np.uint64]:
    """Return the bits of so many pages, all set; page n is bit n % 64 of word n // 64."""
    bits = np.full(-(-n_pages // 64), np.uint64((1 << 64) - 1), dtype=np.uint64)
    if n_pages % 64:
        bits[-1] = (1 << n_pages % 64) - 1
    return bits


class Precopy:
    """The source's loop of a migration, up to the moment when its vCPUs must stop.

    One thread drives it; any thread may read its figures meanwhile.

    Attributes:
        sync_count: dirty-sync-count.
        dirty_pages_rate: pages a second, of the last sync that accounted for it; 0 before.
        remaining_at_sync: bytes that were dirty just after the last sync.
        expected_downtime_ms: as QEMU expects it; downtime-limit at first.
        mbps: 10^6 bit/s over the last window.
        pages_per_second: over the last window.
        threshold: bytes; when less is left the vCPUs stop.

    Args:
        sender: sends pages and counts them; all of its pages are dirty.
        dirty: the sender's bitmaps.
        log: what the vCPUs have written since it was opened.
        settings: parameters, read anew when QEMU does.
        control: what makes it converge.
        clock: time.
        synced: is called after each sync, with dirty-sync-count.
    """

    def __init__(
        self,
        sender: PageSender,
        dirty: Sequence[NDArray[np.uint64]],
        log: DirtySource,
        settings: Settings,
        control: Control,
        clock: Clock,
        synced: Callable[[int], object],
    ) -> None:
        self.sync_count = 0
        self.dirty_pages_rate = 0
        self.remaining_at_sync = 0
        self.expected_downtime_ms = settings.number("downtime-limit")
        self.mbps = 0.0
        self.pages_per_second = 0
        self.threshold = 0
        self._sender = sender
        self._dirty = tuple(dirty)
        self._log = log
        self._settings = settings
        self._control = control
        self._clock = clock
        self._synced = synced
        self._iterations = 0
        self._new_pages = 0  # newly dirty since the beginning
        self._period_pages = 0  # newly dirty since dirty_pages_rate was accounted for
        self._accounted_ms = 0  # when that was
        self._accounted_bytes = 0  # and how many had been sent then
        self._ticking = False  # whether the control is told of windows yet
        self._idle = False  # whether nothing was dirty for a part of the window
        self._tick_pages = (0, 0)  # written, and newly dirty, since the window began
        self._window = RateWindow(self._now_ms())

    def begin(self) -> None:
        """Do the first sync, which finds nothing new as all pages are dirty already."""
        self._accounted_ms = self._now_ms()
        self.sync()

    def run(self, is_active: Callable[[], bool]) -> bool:
        """Send until so little is left that the vCPUs must stop.

        Args:
            is_active: whether to go on; it is looked at some times in each window.

        Returns:
            True when the vCPUs must stop now, False when it is not active any more.

        Raises:
            OSError: the peer or the link is gone.
        """
        self._window = RateWindow(self._now_ms())
        while is_active():
            if not self._exceeded() and self._iterate():
                return True
            if self._control.wants_sync(self._now_ms(), self.sync_count):
                self.sync()
            self._end_window()
            if self._exceeded():
                self._clock.wait_until(self._window.end_ms * _MS)
        return False

    def sync(self) -> None:
        """Fetch what the vCPUs have written, and account for it."""
        self.sync_count += 1
        self._fetch()
        now, sent = self._now_ms(), self._sender.transferred
        if now > self._accounted_ms + STATISTICS_MS:
            self._control.check(self._period_pages * PAGE_SIZE, sent - self._accounted_bytes)
            self.dirty_pages_rate = self._period_pages * 1000 // (now - self._accounted_ms)
            self._accounted_ms, self._accounted_bytes, self._period_pages = now, sent, 0
        self.remaining_at_sync = self._sender.pending * PAGE_SIZE
        self._synced(self.sync_count)

    def send_rest(self) -> None:
        """Send all pages that are dirty, at the link's own speed; the vCPUs stand.

        Raises:
            OSError: the peer or the link is gone.
        """
        while self._sender.pending:
            self._sender.send(0, self._clock.now_ns() + ITERATION_MS * _MS)
        self._end_iteration()

    def _now_ms(self) -> int:
        return self._clock.now_ns() // _MS

    def _limit(self) -> int:
        return budget(self._settings.number("max-bandwidth"))

    def _exceeded(self) -> bool:
        limit = self._limit()
        return limit > 0 and self._sender.used > limit

    def _iterate(self) -> bool:
        """Send for a while; return True instead when little enough is left."""
        if self._sender.pending * PAGE_SIZE < self.threshold:
            self.sync()
        pending = self._sender.pending * PAGE_SIZE
        if not pending or pending < self.threshold:
            return True
        end = self._sender.send(self._limit(), self._clock.now_ns() + ITERATION_MS * _MS)
        self._idle |= end is SendEnd.CLEAN
        self._end_iteration()
        return False

    def _end_iteration(self) -> None:
        self._iterations += 1
        self._sender.put(encode(IterationEnd(self._iterations)))
        self._sender.flush()

    def _fetch(self) -> None:
        written = new = 0
        for taken, dirty in zip(self._log.take(), self._dirty, strict=True):
            if self._ticking:
                written += int(np.count_nonzero(np.unpackbits(taken.view(np.uint8))))
            new += mark_dirty(taken, dirty)
        self._sender.pending += new
        self._new_pages += new
        self._period_pages += new
        self._tick_pages = self._tick_pages[0] + written, self._tick_pages[1] + new

    def _end_window(self) -> None:
        sender = self._sender
        rates = self._window.end(
            self._now_ms(), sender.transferred, sender.normal + sender.duplicate
        )
        if rates is None:
            return
        switchover = self._settings.number("avail-switchover-bandwidth") / 1000
        limit_ms = self._settings.number("downtime-limit")
        self.threshold = int((switchover or rates.bandwidth) * limit_ms)
        self.mbps, self.pages_per_second = rates.mbps, rates.pages_per_second
        if self.dirty_pages_rate and rates.sent_bytes > _LEAST_WINDOW_BYTES:
            expected = self.remaining_at_sync / (switchover or rates.bandwidth)
            self.expected_downtime_ms = int(expected)
        sender.used = 0
        if self._control.ticks and self.sync_count > 1:
            self._end_tick(rates.sent_bytes)

    def _end_tick(self, sent_bytes: int) -> None:
        """Tell the control of a window, from the first whole one after the bulk pass on."""
        self._fetch()
        written, new = self._tick_pages
        if self._ticking:
            self._control.tick(
                sent=sent_bytes,
                written=written * PAGE_SIZE,
                dirtied=new * PAGE_SIZE,
                idle=self._idle,
            )
        else:
            self._control.begin_ticks(
                sent=self._sender.transferred, dirtied=self._new_pages * PAGE_SIZE
            )
        self._ticking = True
        self._tick_pages = 0, 0
        self._idle = False
