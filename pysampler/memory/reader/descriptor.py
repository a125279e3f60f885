# SPDX-License-Identifier: MIT
"""Descriptors that are closed with their last user."""

from __future__ import annotations

import os
import weakref


class Descriptor:
    """An open file, closed by ``close`` or with the last reference to it.

    Attributes:
        fd: the descriptor; -1 when it is closed.

    Args:
        path: what to open for reading.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self.fd = _open(path)
        self._close = weakref.finalize(self, os.close, self.fd)
        self._close.atexit = False  # a thread that is stuck may use it to the very end

    def close(self) -> None:
        """Close it; a second call does nothing."""
        self.fd = -1
        self._close()


def _open(path: str) -> int:
    # O_NONBLOCK: should the path lead to a FIFO by now, open() must not wait for a writer.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:  # only the owner may leave the time of access as it is
        return os.open(path, flags)
