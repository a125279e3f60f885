# SPDX-License-Identifier: MIT
"""dirty-bitmap and dirty-ring of an emulated guest, by the log that its vCPUs keep themselves."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from pysampler.core import LOG_HOLD_S, LogMode
from pysampler.errors import FaultError, MissingFeatureError, SourceError
from pysampler.qemu.dirty_rate import MIN_USED_LENGTH
from pysampler.sampling.passes import PassCount
from pysampler.tracking.guest_log import PAGE_SIZE, GuestLog, NoLogError
from pysampler.tracking.pages import block_details, count_zero_pages
from pysampler.tracking.room import BYTES_PER_PAGE_TRACKED, check_room
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pysampler.memory.ramblock import RAMBlock


class VcpuLog:
    """Observer by a guest's own dirty log; see pysampler.sampling.observer.Observer.

    A page counts once in a measurement, in mode dirty-ring for the vCPU that wrote it first.

    Args:
        blocks: what to track.
        mode: ``dirty-bitmap`` or ``dirty-ring``.
        pid: the guest's process; None for this one.
        threads: threads that look for zero pages.

    Raises:
        NoLogError: the process keeps no log of these blocks, or no rings, or it is not for us.
        SourceError: somebody reads the log already, or the process cannot be looked at.
    """

    sample_pages = 0

    def __init__(
        self,
        blocks: Sequence[RAMBlock],
        mode: Mode,
        *,
        pid: int | None = None,
        threads: int = 1,
    ) -> None:
        self.mode = mode
        self._threads = threads
        self._blocks = tuple(block for block in blocks if block.used_length >= MIN_USED_LENGTH)
        if not self._blocks:
            raise SourceError("there is no RAMBlock of at least 128 KiB to track")
        n_pages = sum(block.used_length // PAGE_SIZE for block in self._blocks)
        self.n_total_pages = self.n_sampled_pages = n_pages
        self._zero = PassCount(0, 0)
        self.log = GuestLog(self._blocks, os.getpid() if pid is None else pid)
        self._harvester: _Harvester | None = None
        self.close: Callable[[], Any] = weakref.finalize(self, self.log.close)
        try:
            n_bits = self.log.file.n_words * 64
            check_room(max(n_pages, n_bits) * BYTES_PER_PAGE_TRACKED, n_pages)
            if mode is Mode.DIRTY_RING:
                if not self.log.file.ring_size:
                    raise NoLogError("the guest has no dirty rings: its --dirty-ring-size is 0")
                self._harvester = _Harvester(self.log)
                self.close = weakref.finalize(self, self._harvester.close)
        except BaseException:
            self.close()
            raise

    def warm_up(self) -> None:
        """Count zero pages and turn logging on."""
        self._zero = count_zero_pages(self._blocks, self._threads)
        ring = self._harvester is not None
        try:
            self.log.start(LogMode.BITMAP_AND_RING if ring else LogMode.BITMAP)
        except OSError as error:
            raise MissingFeatureError(
                f"the dirty log of a guest cannot be read here: {error.strerror} (membarrier)"
            ) from error
        if self._harvester is not None:
            self._harvester.start()

    def baseline(self) -> PassCount:
        """Forget what was written while `warm_up` still went on."""
        self._check()
        if self._harvester is None:
            self.log.file.reset()
        else:
            self._harvester.reset()
        return self._zero

    def compare(self) -> PassCount:
        """Count the pages written since the baseline."""
        if self._harvester is not None:
            self._harvester.harvest()
            count = sum(self._harvester.n_pages)
        else:
            count = self.log.count()
        self._check()
        return PassCount(count, 0)

    def _check(self) -> None:
        broken = self._harvester.broken if self._harvester is not None else ""
        if not broken and not self.log.is_kept():
            broken = f"a vCPU stood at a full ring for {LOG_HOLD_S:g} s, or somebody turned it off"
        if broken:
            raise FaultError(
                f"the guest's dirty log has ended: {broken}; measure anew",
                idstr=self._blocks[0].idstr,
            )

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return (vCPU number, pages it was the first to write), in mode dirty-ring."""
        return () if self._harvester is None else tuple(enumerate(self._harvester.n_pages))

    def details(self) -> dict[str, Any]:
        """Return how it was tracked, and what the rings saw."""
        blocks = [
            {**block, "tracking-page-size": PAGE_SIZE} for block in block_details(self._blocks)
        ]
        if self._harvester is None:
            return {"tracking": "vcpu-log", "blocks": blocks}
        return {
            "tracking": "vcpu-log",
            "dirty-ring-size": self.log.file.ring_size,
            "dirty-ring-full": self._harvester.full(),
            "n-dirty-pages-no-vcpu": 0,  # only vCPUs log
            "blocks": blocks,
        }


class _Harvester:
    """The thread that harvests rings when they are half full.

    Attributes:
        n_pages: by vCPU, pages that it was the first to write.
        broken: why it can harvest no more; empty while it can.
    """

    def __init__(self, log: GuestLog) -> None:
        self._log = log
        self._others = log.outside()
        self._seen = self._others.copy()
        self.n_pages = [0] * log.file.n_vcpus
        self._full_before = self._all_full()
        self.broken = ""
        self._opener = os.getpid()
        self._lock = threading.Lock()
        self._ending = False
        # A daemon, as the interpreter joins other threads before it runs finalizers.
        self._thread = threading.Thread(target=self._serve, name="dirty-ring", daemon=True)

    def start(self) -> None:
        """Begin.

        Raises:
            SourceError: there can be no thread.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise SourceError(f"dirty-ring: {error} that harvests") from error

    def harvest(self) -> None:
        """Empty all rings."""
        with self._lock:
            try:
                for vcpu in range(len(self.n_pages)):
                    self.n_pages[vcpu] += self._log.file.harvest(vcpu, self._seen)
            except OSError as error:
                self.broken = f"{error.filename}: {error.strerror}"

    def reset(self) -> None:
        """Forget all pages; one that is written meanwhile counts as written after.

        The rings come first: what enters them once the bits are clear never enters again.
        """
        self.harvest()
        with self._lock:
            self._seen[:] = self._others
            self.n_pages = [0] * len(self.n_pages)
            self._full_before = self._all_full()
        self._log.file.reset()

    def full(self) -> list[int]:
        """Return by vCPU how often its ring was full since the baseline."""
        return [
            now - before for now, before in zip(self._all_full(), self._full_before, strict=True)
        ]

    def _all_full(self) -> list[int]:
        return [self._log.file.n_full(vcpu) for vcpu in range(self._log.file.n_vcpus)]

    def close(self) -> None:
        """End the thread and close the log; not in a forked child, which has no such thread."""
        if os.getpid() == self._opener:
            self._ending = True
            if self._thread.is_alive():
                self._thread.join()
        self._log.close()

    def _serve(self) -> None:
        while not self._ending and not self.broken:
            self._log.file.wait()
            self.harvest()
