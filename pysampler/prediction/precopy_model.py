# SPDX-License-Identifier: MIT
"""How QEMU 10 migrates: setting up its pre-copy loop, and running it for many guests.

The loop itself is in csrc/precopy_model.c, the constants of QEMU in qemu/migration.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pysampler import core
from pysampler.arguments import is_real
from pysampler.errors import UsageError
from pysampler.qemu import migration
from pysampler.units import MAX_RATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pysampler.prediction.ensemble import Ensemble

ZeroPages = Literal["none", "legacy", "multifd"]

MULTIFD_CHANNELS = migration.default_of("multifd-channels")

# Seen on QEMU 10.0.2 migrations of 1 and 2 GiB guests.
_SETUP_MS = 1.0
_STOP_MS = 2.3
_WAKE_UP_MS = 0.03
_DEVICE_BYTES = 60_000

_AT_ONCE = 16

UNLIMITED_MS = 1e12

# What members of Precopy may be.
LIMITS = {
    "link": (1.0, MAX_RATE),
    "deadline_ms": (1.0, 1e8),
    "latency_ms": (0.0, 1e6),
    "logging_us": (0.0, 1e6),
    "zero_page_us": (0.0, 1e6),
}


@dataclass(frozen=True)
class Precopy:
    """How the migration is set up.

    Attributes:
        link: bytes per second of the link itself, which the last pass gets: max-bandwidth does not
            hold it. None: as much as max-bandwidth.
        deadline_ms: a migration that takes longer does not converge.
        multifd: pages travel in packets of 128 through two channels.
        zero_pages: how zero pages are found and sent: ``legacy`` 9 bytes each, ``multifd`` 8 bytes
            each, ``none`` as any other page. None: QEMU's default, ``multifd``, which without
            multifd's channels is ``legacy``.
        latency_ms: round-trip time of the link.
        logging_us: what dirty logging costs the guest at a page's first write. About 1.3 us with
            KVM and 4 KiB pages; under TCG nothing shows.
        zero_page_us: what it costs the host to read a zero page, which no vector tells: 0.1 to 5 us
            were seen (docs/prediction.md). None: nothing. No link makes it shorter, so unlike the
            rest it does not scale with memory and bandwidth.
    """

    link: float | None = None
    deadline_ms: float = 3_600_000.0
    multifd: bool = False
    zero_pages: ZeroPages | None = None
    latency_ms: float = 0.0
    logging_us: float = 0.0
    zero_page_us: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no migration has."""
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if name in ("link", "zero_page_us") and value is None:
                continue
            if not is_real(value) or not low <= value <= high:
                raise UsageError(f"{name}: {value!r} is not between {low:g} and {high:g}")
        if self.zero_pages not in (None, "none", "legacy", "multifd"):
            raise UsageError(f"zero_pages: {self.zero_pages!r} is not none, legacy or multifd")

    def parameters(self, page_size: int) -> dict[str, float]:
        """Return the members of struct ps_precopy_parameters."""
        header: float = migration.PAGE_HEADER_BYTES
        if self.multifd:
            header = migration.MULTIFD_PACKET_HEADER_BYTES / migration.MULTIFD_PACKET_PAGES
        page_bytes = page_size + header
        pages_at_once = migration.MULTIFD_PACKET_PAGES if self.multifd else migration.FLUSH_PAGES
        return {
            "deadline_ms": self.deadline_ms,
            "window_ms": migration.WINDOW_MS,
            "iteration_ms": migration.ITERATION_MS,
            "page_size": page_size,
            "page_bytes": page_bytes,
            "zero_page_bytes": self._zero_page_bytes(page_bytes),
            "zero_page_ms": (self.zero_page_us or 0.0) / 1000,
            "flush_bytes": pages_at_once * page_bytes,
            # Seen on QEMU 10.0.2: 1.05 MB in each window, whatever the bandwidth.
            "on_way_bytes": MULTIFD_CHANNELS * pages_at_once * page_bytes if self.multifd else 0,
            "device_bytes": _DEVICE_BYTES,
            # The channel is set up, and the destination's word is awaited at the end.
            "setup_ms": _SETUP_MS + self.latency_ms,
            "stop_ms": _STOP_MS + self.latency_ms,
            "wake_up_ms": _WAKE_UP_MS,
            "logging_ms_per_page": self.logging_us / 1000,
        }

    def _zero_page_bytes(self, page_bytes: float) -> float:
        if self.zero_pages == "none":
            return page_bytes
        # Without its channels multifd finds none: QEMU then does it the legacy way.
        if self.multifd and self.zero_pages != "legacy":
            return migration.MULTIFD_ZERO_PAGE_BYTES
        return migration.ZERO_PAGE_BYTES

    def with_link(self, link: float) -> Precopy:
        """Return the same with another link."""
        return replace(self, link=link)

    def cells(self, grid: Sequence[tuple[float, float | None]]) -> NDArray[Any]:
        """Return PRECOPY_CELLs of (bandwidth in bytes/s, downtime-limit in ms or None)."""
        cells = np.zeros(len(grid), dtype=core.PRECOPY_CELL)
        cells["longer_limit_cell"] = -1
        for cell, (bandwidth, limit) in zip(cells, grid, strict=True):
            cell["bandwidth"] = bandwidth / 1000
            cell["link"] = (self.link or bandwidth) / 1000
            cell["downtime_limit_ms"] = UNLIMITED_MS if limit is None else limit
        return cells


def migrate(
    ensemble: Ensemble,
    precopy: Precopy,
    grid: Sequence[tuple[float, float | None]],
    longer_limit_cells: Sequence[int] | None = None,
) -> NDArray[Any]:
    """Migrate every member of an ensemble with every cell.

    Args:
        ensemble: the guests.
        precopy: how they are migrated.
        grid: (bandwidth in bytes/s, downtime-limit in ms or None) of each cell.
        longer_limit_cells: for each cell the index of an earlier one with a longer limit and the
            same bandwidth, or -1; its outcome is the same where that does not converge or does not
            notice the shorter limit.

    Returns:
        core.PRECOPY_OUTCOME, shape [members, cells].
    """
    parameters, cells = precopy.parameters(ensemble.page_size), precopy.cells(grid)
    if longer_limit_cells is not None:
        cells["longer_limit_cell"] = longer_limit_cells
    guests = ensemble.arrays
    # A few at a time: in between Python sees a Ctrl-C.
    parts = [slice(first, first + _AT_ONCE) for first in range(0, len(guests.guests), _AT_ONCE)]
    return np.concatenate(
        [core.precopy_grid(parameters, guests.part(part), cells) for part in parts]
    )
