# SPDX-License-Identifier: MIT
"""Check that there is memory for exact tracking, which keeps some bytes for each page."""

from __future__ import annotations

import resource

from pysampler.core import HOST_PAGE_SIZE
from pysampler.errors import SourceError
from pysampler.host.machine import available_bytes
from pysampler.units import format_size

# Measured: 34 and 50 at their peaks, the first while zero pages are counted.
BYTES_PER_PAGE_TRACKED = 48
BYTES_PER_PAGE_COMPARED = 64


def check_room(needed: int, n_pages: int) -> None:
    """Check that an exact mode can have its memory, before any of it is taken.

    Args:
        needed: bytes.
        n_pages: of 4096 bytes that it is for.

    Raises:
        SourceError: it cannot.
    """
    room, limit = available_bytes(), "are available"
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        with open("/proc/self/statm", encoding="ascii") as statm:
            left = max(0, address_space - int(statm.read().split()[0]) * HOST_PAGE_SIZE)
        if left < room:
            room, limit = left, "are left of the limit of address space (ulimit -v)"
    if needed > room:
        raise SourceError(
            f"exact tracking of {n_pages} pages needs {format_size(needed)} and"
            f" {format_size(room)} {limit}; page-sampling takes less"
        )
