# SPDX-License-Identifier: MIT
"""The guest's dirty log, which its vCPUs keep as KVM keeps it for its guests: the guest's side."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from pysampler import core
from pysampler.core import LOG_RING, LOG_RING_MAX, LOG_RING_MIN, DirtyLogFile, LogMode
from pysampler.errors import UsageError
from pysampler.guest.ram import PAGE_SIZE, SharedArray
from pysampler.tracking.guest_log import LOG_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pysampler.guest.ram import Block


def check_ring_size(entries: int, name: str) -> int:
    """Return a size of rings, which the message calls ``name``.

    Raises:
        UsageError: rings cannot have that size.
    """
    if not core.is_ring_size(entries):
        raise UsageError(
            f"{name}: {entries} is neither 0, for no rings, nor a power of two from {LOG_RING_MIN}"
            f" to {LOG_RING_MAX}"
        )
    return entries


class DirtyLog:
    """The log in a memfd. It takes no memory before a reader turns logging on.

    Attributes:
        file: what the vCPUs write.
        fd: the memfd.
    """

    def __init__(
        self, blocks: Sequence[Block], n_vcpus: int, cost_ns: int = 0, ring_size: int = LOG_RING
    ) -> None:
        """Make a log that is off.

        Args:
            blocks: the guest's RAMBlocks.
            n_vcpus: vCPUs.
            cost_ns: what a page's first write takes longer while the log is on.
            ring_size: entries after which a vCPU's ring is full; 0 for no rings.
        """
        files = [os.fstat(block.fd) for block in blocks]
        layout = core.log_blocks(
            [(file.st_dev, file.st_ino) for file in files],
            [block.length // PAGE_SIZE for block in blocks],
        )
        self._shared = SharedArray(LOG_NAME, core.log_bytes(n_vcpus, layout, ring_size) // 8)
        self.fd = self._shared.fd
        self.file = DirtyLogFile(self._shared.array, n_vcpus, layout, ring_size)
        self.file.publish(cost_ns)

    def end_if_unread(self) -> None:
        """Turn logging off if its reader has gone without doing so; call this now and then."""
        if self.file.mode is LogMode.OFF:
            return
        # A description of our own: locks belong to these, and the reader's ended with the reader.
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.file.set_mode(LogMode.OFF)
        except BlockingIOError:
            pass  # it is being read
        finally:
            os.close(fd)

    def close(self) -> None:
        """Close the memfd; its memory goes with the last use of `file`."""
        self._shared.close()
