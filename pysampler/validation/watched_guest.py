# SPDX-License-Identifier: MIT
"""The guest of the experiment: one vCPU, its counter and its truth read from shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pysampler.guest.process import GuestProcess
from pysampler.guest.ram import PAGE_SIZE
from pysampler.memory.source import find_blocks

if TYPE_CHECKING:
    from pysampler.memory.ramblock import RAMBlock


class WatchedGuest(GuestProcess):
    """A running guest with one vCPU that keeps the time of each page's last write.

    Args:
        size: bytes of its RAM.
        workload: as ``--workload`` takes it.
        seed: of its content and its writes.

    Attributes:
        block: its RAM.

    Raises:
        SourceError: it did not start; the message has its own words.
    """

    def __init__(self, size: int, workload: str, seed: int) -> None:
        words = ["--memory", str(size), "--truth", "--workload", workload, "--seed", str(seed)]
        super().__init__(*words)
        try:
            main = self.ready["blocks"][0]
            self._stamps = self.shared(self.ready["truth"]["fd"])[: main["length"] // PAGE_SIZE]
            self.block: RAMBlock = next(
                block for block in find_blocks(self.pid) if block.idstr == main["idstr"]
            )
        except BaseException:
            self.close()
            raise

    def dirty_since(self, monotonic_ns: int) -> int:
        """Return how many pages have been written since then."""
        return int(np.count_nonzero(self._stamps >= monotonic_ns))


def memory_needed(size: int) -> int:
    """Return the bytes that a guest of this size takes, its truth and tracking included."""
    return size + size // PAGE_SIZE * 8 + size // 256 + (256 << 20)
