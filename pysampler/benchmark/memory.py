# SPDX-License-Identifier: MIT
"""Memory to read: of 4 KiB or 2 MiB pages, larger than the caches, read at random."""

from __future__ import annotations

import mmap
import re
from typing import TYPE_CHECKING

import numpy as np

from pysampler.errors import MissingFeatureError
from pysampler.qemu.dirty_rate import PAGE_SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_HUGE = 2 << 20


class Region:
    """Anonymous memory with random content.

    Args:
        length: bytes, a multiple of 2 MiB.
        huge: back it with 2 MiB pages.
        seed: of the order in which its pages are taken.

    Raises:
        MissingFeatureError: 2 MiB pages cannot be had.
    """

    def __init__(self, length: int, *, huge: bool, seed: int = 1) -> None:
        # One huge page more, so that the part that is used can begin at a huge page.
        self._map = mmap.mmap(-1, length + _HUGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        whole = np.frombuffer(self._map, np.uint8)
        self.address = -(-whole.ctypes.data // _HUGE) * _HUGE
        begin = self.address - whole.ctypes.data
        self.pages: NDArray[np.uint8] = whole[begin : begin + length].reshape(-1, PAGE_SIZE)
        rng = np.random.default_rng(seed)
        # Content does not matter to any of the hashes, only that each page is there.
        self.pages.view(np.uint64)[:] = rng.integers(0, 1 << 63, PAGE_SIZE // 8, np.uint64)
        self.pages.view(np.uint64)[:, 0] = np.arange(len(self.pages))
        if huge and _huge_bytes(self.address, length) < 0.9 * length:
            raise MissingFeatureError(
                "2 MiB pages are not to be had;"
                " echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
            )
        self._order = rng.permutation(len(self.pages)).astype(np.uint64)
        self._taken = 0

    def cold(self, n: int) -> NDArray[np.uint64]:
        """Return ``n`` page numbers in random order, none of them taken for as long as can be.

        When a page comes again, all the others have been taken in between: with a region of a
        few times the last-level cache, it is in no cache.
        """
        if self._taken + n > len(self._order):
            self._taken = 0
        self._taken += n
        return self._order[self._taken - n : self._taken]


def _huge_bytes(address: int, length: int) -> int:
    """Return how much of [address, address + length) the kernel backs with huge pages."""
    found = 0
    inside = False
    with open("/proc/self/smaps", encoding="utf-8") as smaps:
        for line in smaps:
            header = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            if header:
                begin, end = (int(text, 16) for text in header.groups())
                inside = begin < address + length and end > address
            elif inside and line.startswith("AnonHugePages:"):
                found += int(line.split()[1]) << 10
    return found
