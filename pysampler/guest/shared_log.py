# SPDX-License-Identifier: MIT
"""The guest's own reading of its vCPUs' dirty log, for a migration and for dirty limits at once.

While the log has a user here it is locked, so that a measurement looks for another way.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from pysampler.core import LogMode
from pysampler.errors import MissingFeatureError, SourceError
from pysampler.tracking.guest_log import lock_log

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.guest.dirty_log import DirtyLog

_LOOK_S = 0.01  # how often to look whether a vCPU that sleeps was let go


class SharedLog:
    """The dirty log of a guest of this process. Any thread may call.

    The two users see the log as QEMU and KVM have it: harvesting a ring clears the bits of its
    pages, so that their next write enters a ring again. The bitmap's user still gets these pages:
    they are kept for it. One that has been kept may be read after the barrier of `take`.
    """

    def __init__(self, log: DirtyLog) -> None:
        self._log = log
        self._file = log.file
        self._lock = threading.Lock()  # guards all that follows
        self._lock_fd = -1
        self._bitmap: BitmapUser | None = None
        self._rings: RingUser | None = None
        self._kept: NDArray[np.uint64] = np.zeros(self._file.n_words, dtype=np.uint64)
        self._has_gap = False  # the log was off for a while
        self._n_harvested = [0] * self._file.n_vcpus
        self._n_full = [0] * self._file.n_vcpus  # at the last harvest

    def bitmap(self) -> BitmapUser:
        """Turn logging on, with all pages clean from now on.

        Raises:
            SourceError: a measurement reads the log, or the log has such a user already.
            MissingFeatureError: there are no barriers here (membarrier).
        """
        with self._lock:
            if self._bitmap is not None:
                raise SourceError("the guest's dirty log has a user already; close that first")
            user = BitmapUser(self)
            self._set_users(user, self._rings)
            self._collect_all()
            self._file.reset()
            self._kept[:] = 0
            self._has_gap = False
            return user

    def rings(self) -> RingUser:
        """Have the vCPUs fill their rings, and harvest each one that is full.

        Raises:
            SourceError: a measurement reads the log, the log has such a user already, or there can
                be no thread that harvests.
            MissingFeatureError: the guest has no rings, or there are no barriers here (membarrier).
        """
        if not self._file.ring_size:
            raise MissingFeatureError("the guest has no dirty rings: its --dirty-ring-size is 0")
        with self._lock:
            if self._rings is not None:
                raise SourceError("the guest's dirty rings have a user already; close that first")
            user = RingUser(self, self._file.n_vcpus)
            self._set_users(self._bitmap, user)
            self._empty()
            self._n_harvested = [0] * self._file.n_vcpus
        try:
            user.start()
        except RuntimeError as error:
            self.leave(user)
            raise SourceError(f"dirty-limit: {error} that harvests") from error
        return user

    def take(self) -> list[NDArray[np.uint64]]:
        """Get and reset the written pages, as `BitmapUser.take` says.

        Raises:
            SourceError: the log has no such user.
        """
        with self._lock:
            if self._bitmap is None:
                raise SourceError("the guest's dirty log is not being read; its user is closed")
            self._collect_all()
            words = self._file.take_all()
            words |= self._kept  # these bits were cleared before: the barrier was for them as well
            self._kept[:] = 0
            if self._has_gap:  # what was written then is unknown: any page may have been
                words[:] = ~np.uint64(0)
                self._has_gap = False
        return [words[b.first_word : b.first_word + b.n_words] for b in self._file.blocks]

    def sync(self) -> None:
        """Harvest all rings."""
        with self._lock:
            if self._rings is not None:
                self._empty()

    def harvest_full(self) -> None:
        """Harvest the rings at which vCPUs stand."""
        with self._lock:
            if self._rings is None:
                return
            self._go_on()
            for vcpu, n_full in enumerate(self._n_full):
                if self._file.n_full(vcpu) != n_full:
                    self._collect(vcpu)

    def n_harvested(self) -> list[int]:
        """Return by vCPU how many entries have been harvested."""
        with self._lock:
            return self._n_harvested.copy()

    def wait(self) -> None:
        """Wait until a ring is half full or full, or for 100 ms."""
        self._file.wait()

    def asleep_until_ns(self) -> list[int]:
        """Return by vCPU when its last sleep after a full ring ends, CLOCK_MONOTONIC in ns."""
        return [self._file.asleep_until_ns(vcpu) for vcpu in range(self._file.n_vcpus)]

    def sleep_at_full(self, vcpu: int, sleep_ns: int) -> None:
        """Let a vCPU sleep at each full ring; 0 ends a sleep that is under way, too."""
        self._file.sleep_at_full(vcpu, sleep_ns)

    def leave(self, user: BitmapUser | RingUser) -> None:
        """End what a user had; a second call does nothing."""
        with self._lock:
            if user is self._bitmap:
                self._set_users(None, self._rings)
            elif user is self._rings:
                for vcpu in range(self._file.n_vcpus):
                    self._file.sleep_at_full(vcpu, 0)
                self._set_users(self._bitmap, None)

    def _mode(self) -> LogMode:
        if self._rings is not None:
            return LogMode.BITMAP_AND_RING
        return LogMode.OFF if self._bitmap is None else LogMode.BITMAP

    def _set_users(self, bitmap: BitmapUser | None, rings: RingUser | None) -> None:
        """Have these users from now on, and the lock and the mode that they need."""
        before = self._bitmap, self._rings
        if self._lock_fd < 0:
            self._take_lock()
        self._bitmap, self._rings = bitmap, rings
        try:
            self._file.set_mode(self._mode())
        except OSError as error:
            self._bitmap, self._rings = before
            if before == (None, None):
                self._release_lock()
            raise MissingFeatureError(
                f"the dirty log of a guest cannot be read here: {error.strerror} (membarrier)"
            ) from error
        if bitmap is None and rings is None:
            self._release_lock()

    def _go_on(self) -> None:
        """Turn logging on again, if a vCPU gave it up: this whole process may have stood still."""
        if self._file.mode is not self._mode():
            self._file.set_mode(self._mode())
            self._has_gap = True

    def _collect(self, vcpu: int) -> None:
        self._n_full[vcpu] = self._file.n_full(vcpu)  # first: one that becomes full now comes again
        kept = None if self._bitmap is None else self._kept
        self._n_harvested[vcpu] += self._file.collect(vcpu, kept)

    def _collect_all(self) -> None:
        self._go_on()
        for vcpu in range(self._file.n_vcpus):
            self._collect(vcpu)

    def _empty(self) -> None:
        """Harvest all rings and clear all bits.

        A bit may be set though no ring has its page: by a vCPU that had looked before there were
        rings. Its page would enter no ring until the bit is clear.
        """
        self._collect_all()
        words = self._file.take_all()
        if self._bitmap is not None:
            self._kept |= words

    def _take_lock(self) -> None:
        # A description of our own: locks belong to these.
        fd = os.open(f"/proc/self/fd/{self._log.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            lock_log(fd, os.getpid())
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd
        self._file.own_reader = True

    def _release_lock(self) -> None:
        self._file.own_reader = False
        fcntl.flock(self._lock_fd, fcntl.LOCK_UN)  # a forked child may have the descriptor as well
        os.close(self._lock_fd)
        self._lock_fd = -1


class BitmapUser:
    """Who wants to know which pages have been written; `SharedLog.bitmap` makes one."""

    def __init__(self, log: SharedLog) -> None:
        self._log = log

    def take(self) -> list[NDArray[np.uint64]]:
        """Return the pages written since the last call, by block of the guest.

        Returns:
            Words; page ``n`` of 4096 bytes is bit ``n % 64`` of word ``n // 64``. Bits past a
            block's end may be set. A page that is read after this has all that was written to
            it before its bit was taken.
        """
        return self._log.take()

    def close(self) -> None:
        """Turn logging off, unless another user needs it; a second call does nothing."""
        self._log.leave(self)


class RingUser:
    """Who slows vCPUs down by their dirty rings; `SharedLog.rings` makes one.

    A thread harvests a ring when its vCPU stands at it, and no other ring, as QEMU does while a
    dirty limit is on. A page counts once for each harvest of its ring.

    Args:
        log: the guest's.
        n_vcpus: its vCPUs.
    """

    def __init__(self, log: SharedLog, n_vcpus: int) -> None:
        self._log = log
        self._n_vcpus = n_vcpus
        self._closing = threading.Event()
        # A daemon, as the interpreter joins other threads before it ends.
        self._thread = threading.Thread(target=self._serve, name="dirty-limit-rings", daemon=True)

    def start(self) -> None:
        """Begin to harvest.

        Raises:
            RuntimeError: there can be no thread.
        """
        self._thread.start()

    def pages(self) -> list[int]:
        """Return by vCPU how many entries of its ring have been harvested since the beginning."""
        return self._log.n_harvested()

    def sync(self) -> None:
        """Harvest all rings, once the vCPUs that sleep now are awake; `close` ends the wait.

        QEMU asks each vCPU to come out of the guest for that, and one that sleeps comes later.
        """
        until_ns = max(self._log.asleep_until_ns())
        while (left_ns := until_ns - time.monotonic_ns()) > 0:
            if self._closing.wait(min(left_ns / 1e9, _LOOK_S)):
                break
            until_ns = min(until_ns, max(self._log.asleep_until_ns()))  # it may have been let go
        self._log.sync()

    def asleep(self) -> list[bool]:
        """Return by vCPU whether it sleeps after a full ring."""
        now_ns = time.monotonic_ns()
        return [until_ns > now_ns for until_ns in self._log.asleep_until_ns()]

    def sleep_at_full(self, vcpu: int, sleep_ns: int) -> None:
        """Let a vCPU sleep at each full ring, after its harvest.

        Args:
            vcpu: its number.
            sleep_ns: how long, at most a minute; 0 for not at all, which ends a sleep as well.

        Raises:
            IndexError: there is no such vCPU.
        """
        if not 0 <= vcpu < self._n_vcpus:
            raise IndexError(vcpu)
        self._log.sleep_at_full(vcpu, sleep_ns)

    def close(self) -> None:
        """Let all vCPUs go and end the rings; a second call does nothing."""
        self._closing.set()
        self._log.leave(self)
        self._thread.join()

    def _serve(self) -> None:
        while not self._closing.is_set():
            self._log.wait()
            self._log.harvest_full()
