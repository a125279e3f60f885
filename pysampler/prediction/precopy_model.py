# SPDX-License-Identifier: MIT
"""The model of pre-copy as QEMU 10 runs it: its parameters, and runs of it for many guests.

The model is QEMU's migration loop in simulated time. The loop is in csrc/precopy_model.c. QEMU's
constants are in qemu/migration.py, each with its source. Some times of the host are in no source of
QEMU. They were measured on migrations of guests of 1 and 2 GiB by QEMU 10.0.2.
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
    """The setup of a migration. The defaults are QEMU's.

    Attributes:
        link: rate of the link, bytes per second. The last pass runs at this rate, as max-bandwidth
            does not apply to it. None: the same as max-bandwidth.
        deadline_ms: time after which a migration counts as one that does not converge, ms.
        multifd: whether the capability multifd is on. Pages then travel in packets of 128 pages,
            through two channels.
        zero_pages: QEMU's parameter zero-page-detection. A zero page takes 9 bytes with ``legacy``
            and 8 bytes with ``multifd``; with ``none`` it is sent as any other page. None: QEMU's
            default, ``multifd``. Without the capability multifd, ``multifd`` means ``legacy``.
        latency_ms: round-trip time of the link, ms.
        logging_us: time that dirty logging adds to the first write of a page, us. It is about
            1.3 us with KVM and pages of 4 KiB. Under TCG none was seen.
        zero_page_us: time in which the host reads a zero page, us. No vector tells it; 0.1 to 5 us
            were seen (docs/prediction.md). None: no time. It does not depend on the link, so a
            migration with k times the memory and k times the bandwidth is not as long with it.

    Raises:
        UsageError: a member is out of range.
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
        """Return the members of struct ps_precopy_parameters, which has their units.

        Args:
            page_size: bytes of a page of the guest.
        """
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
        """Return the same setup with a link of another rate, in bytes per second."""
        return replace(self, link=link)

    def cells(self, grid: Sequence[tuple[float, float | None]]) -> NDArray[Any]:
        """Return the cells of a grid for the model.

        Args:
            grid: pairs of max-bandwidth in bytes per second and downtime-limit in ms; None as a
                downtime-limit: unlimited.

        Returns:
            core.PRECOPY_CELL, shape [cells].
        """
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
    """Migrate every guest of an ensemble with every cell of a grid.

    Args:
        ensemble: the guests.
        precopy: setup of the migrations.
        grid: for each cell max-bandwidth in bytes per second and downtime-limit in ms; None as a
            downtime-limit: unlimited.
        longer_limit_cells: for each cell the index of an earlier cell with the same bandwidth and a
            longer downtime-limit, or -1. Where that one does not converge, the cell does not either
            and is not run. It is not run either where the shorter limit changes nothing. None: each
            cell is run.

    Returns:
        core.PRECOPY_OUTCOME, shape [guests, cells].

    Raises:
        OSError: a cell's ``longer_limit_cells`` is no such index.
    """
    parameters, cells = precopy.parameters(ensemble.page_size), precopy.cells(grid)
    if longer_limit_cells is not None:
        cells["longer_limit_cell"] = longer_limit_cells
    return core.precopy_grid(parameters, ensemble.arrays, cells)
