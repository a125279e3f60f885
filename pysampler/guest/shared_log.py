# SPDX-License-Identifier: MIT
"""The guest's own reading of its vCPUs' dirty log, for a migration.

While the log has a user here it is locked, so that a measurement looks for another way.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import numpy as np

from pysampler.core import LogMode
from pysampler.errors import MissingFeatureError, SourceError
from pysampler.tracking.guest_log import lock_log

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.guest.dirty_log import DirtyLog


class SharedLog:
    """The dirty log of a guest of this process. Any thread may call."""

    def __init__(self, log: DirtyLog) -> None:
        self._log = log
        self._file = log.file
        self._lock = threading.Lock()  # guards all that follows
        self._lock_fd = -1
        self._bitmap: BitmapUser | None = None

    def bitmap(self) -> BitmapUser:
        """Turn logging on, with all pages clean from now on.

        Raises:
            SourceError: a measurement reads the log, or the log has such a user already.
            MissingFeatureError: there are no barriers here (membarrier).
        """
        with self._lock:
            if self._bitmap is not None:
                raise SourceError("the guest's dirty log has a user already; close that first")
            self._take_lock()
            try:
                self._file.set_mode(LogMode.BITMAP)
                self._file.reset()
            except OSError as error:
                self._release_lock()
                raise MissingFeatureError(
                    f"the dirty log of a guest cannot be read here: {error.strerror} (membarrier)"
                ) from error
            self._bitmap = BitmapUser(self)
            return self._bitmap

    def take(self) -> list[NDArray[np.uint64]]:
        """Get and reset the written pages, as `BitmapUser.take` says."""
        with self._lock:
            if self._file.mode is LogMode.BITMAP:
                return self._file.take_all()
            # What was written meanwhile is unknown: any page may have been.
            self._file.set_mode(LogMode.BITMAP)
            self._file.reset()
            return [np.full(block.n_words, -1).view(np.uint64) for block in self._file.blocks]

    def leave(self, user: BitmapUser) -> None:
        """End what a user had; a second call does nothing."""
        with self._lock:
            if self._bitmap is user:
                self._bitmap = None
                self._file.set_mode(LogMode.OFF)
                self._release_lock()

    def _take_lock(self) -> None:
        # A description of our own: locks belong to these.
        fd = os.open(f"/proc/self/fd/{self._log.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            lock_log(fd, os.getpid())
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd

    def _release_lock(self) -> None:
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
