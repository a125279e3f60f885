# SPDX-License-Identifier: MIT
"""Exact tracking: userfaultfd, pagemap, and the rings of written pages."""

from __future__ import annotations

import enum
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pysampler._native import ffi, lib
from pysampler.core.seam import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pysampler.core.seam import BitArray


HOST_PAGE_SIZE = os.sysconf("SC_PAGESIZE")  # the grain of exact tracking

MAX_WAITING = 1024  # writes that can wait at full rings; more leave their messages in the kernel


class UffdKind(enum.IntEnum):
    """The ways in which a userfaultfd answers a write to a protected page."""

    ASYNC = lib.PS_UFFD_ASYNC
    MESSAGES = lib.PS_UFFD_MESSAGES


def uffd_open(kind: UffdKind) -> int:
    """Open a userfaultfd of this process; see ps_uffd_open.

    Raises:
        OSError: EPERM, ENOSYS or EOPNOTSUPP.
    """
    return check(lib.ps_uffd_open(kind), "userfaultfd")


def uffd_features(kind: UffdKind) -> int:
    """Return the feature bits of a kind."""
    return int(lib.ps_uffd_features(kind))


def uffd_copy(pid: int, fd: int) -> int:
    """Return a copy of another process's descriptor; see ps_uffd_copy."""
    return check(lib.ps_uffd_copy(pid, fd), f"descriptor {fd} of process {pid}")


class Range(NamedTuple):
    """Memory of an address space that is tracked.

    Attributes:
        address: of its first byte.
        length: bytes, whole pages.
        first_bit: its first page's bit in the bitmap.
        page_size: bytes that are protected and released together, `uffd_page_size`.
    """

    address: int
    length: int
    first_bit: int
    page_size: int = HOST_PAGE_SIZE

    @property
    def end_bit(self) -> int:
        """The bit after its last page's."""
        return self.first_bit + self.length // HOST_PAGE_SIZE


def uffd_register(uffd: int, memory: Range) -> None:
    """Register memory for write-protection; see ps_uffd_register."""
    check(lib.ps_uffd_register(uffd, memory.address, memory.length), "UFFDIO_REGISTER")


def uffd_page_size(uffd: int, memory: Range) -> int:
    """Return the grain of registered memory in bytes; see ps_uffd_page_size."""
    return check(
        lib.ps_uffd_page_size(uffd, memory.address, memory.length, HOST_PAGE_SIZE),
        "UFFDIO_WRITEPROTECT",
    )


def uffd_unregister(uffd: int, memory: Range) -> None:
    """Give memory back as it was and wake all who wait for it."""
    check(lib.ps_uffd_unregister(uffd, memory.address, memory.length), "UFFDIO_UNREGISTER")


def uffd_protect(uffd: int, memory: Range) -> None:
    """Write-protect registered memory, also the pages that do not exist yet."""
    check(lib.ps_uffd_protect(uffd, memory.address, memory.length), "UFFDIO_WRITEPROTECT")


def protect_written(pagemap: int, memory: Range) -> None:
    """Protect the written pages of protected memory again; see ps_protect_written."""
    check(lib.ps_protect_written(pagemap, memory.address, memory.length), "PAGEMAP_SCAN")


def written_pages(pagemap: int, memory: Range, bitmap: BitArray) -> int:
    """Set the bits of pages written since they were protected; see ps_written_pages.

    Returns:
        How many bits were not set before.
    """
    bits = _bits(bitmap, [memory])
    return check(
        lib.ps_written_pages(pagemap, _range(memory), HOST_PAGE_SIZE, bits), "PAGEMAP_SCAN"
    )


def soft_dirty_pages(pagemap: int, memory: Range, bitmap: BitArray) -> int:
    """Set the bits of pages that are soft-dirty; see ps_soft_dirty_pages.

    Returns:
        How many bits were not set before.
    """
    bits = _bits(bitmap, [memory])
    return check(lib.ps_soft_dirty_pages(pagemap, _range(memory), HOST_PAGE_SIZE, bits), "pagemap")


CLEANUP_BEAT_S = lib.PS_CLEANUP_BEAT_MS / 1000
CLEANUP_LATE_S = lib.PS_CLEANUP_LATE_MS / 1000
CLEANUP_LET_GO = bytes([lib.PS_CLEANUP_LET_GO])


class RingRequest(enum.IntEnum):
    """The requests that `ring_serve` takes."""

    HARVEST = lib.PS_RING_HARVEST
    RESET = lib.PS_RING_RESET
    STOP = lib.PS_RING_STOP


class RingSet:
    """A C struct ps_ring_set, with the memory that it points to.

    Args:
        uffd: a descriptor of kind MESSAGES.
        own_uffd: a private copy of it.
        ranges: the memory under tracking.
        bitmap: has a bit for each of its pages.
        tids: the threads with a ring of their own.
        capacity: entries of a ring.
        harvest_full: whether a full ring is harvested at once.
        cleanup: a socket to the cleanup process; -1 without one.
    """

    def __init__(
        self,
        uffd: int,
        own_uffd: int,
        ranges: Sequence[Range],
        bitmap: BitArray,
        tids: Sequence[int],
        *,
        capacity: int,
        harvest_full: bool,
        cleanup: int,
    ) -> None:
        n_rings = len(tids) + 1
        self._bitmap = _bits(bitmap, ranges)
        self._ranges = ffi.new("struct ps_range[]", list(ranges))
        self._entries = ffi.new("uint64_t[]", n_rings * capacity)
        self._waiting = ffi.new("struct ps_waiting[]", MAX_WAITING)
        self._rings = ffi.new("struct ps_ring[]", n_rings)
        for i, tid in enumerate((*tids, 0)):
            self._rings[i].entries = self._entries + i * capacity
            self._rings[i].tid = tid
        self.struct = ffi.new(
            "struct ps_ring_set *",
            {
                "uffd": own_uffd,
                "shown_uffd": uffd,
                "cleanup_fd": cleanup,
                "harvest_full": harvest_full,
                "page_size": HOST_PAGE_SIZE,
                "n_ranges": len(ranges),
                "ranges": self._ranges,
                "bitmap": self._bitmap,
                "n_rings": n_rings,
                "rings": self._rings,
                "capacity": capacity,
                "max_waiting": MAX_WAITING,
                "waiting": self._waiting,
            },
        )

    @property
    def n_pages(self) -> tuple[int, ...]:
        """Harvested pages of each ring, the last one being that of all other threads."""
        return tuple(self._rings[i].n_pages for i in range(self.struct.n_rings))

    @property
    def n_full(self) -> tuple[int, ...]:
        """How often each ring was found full."""
        return tuple(self._rings[i].n_full for i in range(self.struct.n_rings))

    @property
    def n_waiting(self) -> int:
        """Writes that wait at full rings."""
        return int(self.struct.n_waiting)


def ring_serve(rings: RingSet, request: int, reply: int) -> None:
    """Answer write-protect messages until asked to stop; see ps_ring_serve."""
    check(lib.ps_ring_serve(rings.struct, request, reply), "userfaultfd")


def _range(memory: Range) -> Any:
    return ffi.new("struct ps_range *", memory)


def _bits(bitmap: BitArray, ranges: Sequence[Range]) -> Any:
    n = max((memory.end_bit for memory in ranges), default=0)
    if bitmap.dtype != np.uint8 or not bitmap.flags.c_contiguous or len(bitmap) * 8 < n:
        raise TypeError(f"bitmap must be a contiguous array of uint8 with {n} bits")
    return ffi.from_buffer("uint8_t[]", bitmap, require_writable=True)
