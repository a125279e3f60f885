# SPDX-License-Identifier: MIT
"""The published accuracy table, from QEMU's commit 34a68001f1."""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from typing import NamedTuple

from pysampler.units import GIB


class Published(NamedTuple):
    """MiB/s of one published cell: 3 M writes a second to uniformly random pages."""

    theory: int
    page_sampling: int
    dirty_bitmap: int


@cache
def published() -> dict[tuple[int, int], Published]:
    """Return the published cells by (bytes, calc-time in ms)."""
    text = resources.files(__package__).joinpath("published.csv").read_text(encoding="ascii")
    return {
        (int(row["region_gib"]) * GIB, int(row["calc_time_ms"])): Published(
            int(row["theoretical_mib_s"]),
            int(row["page_sampling_mib_s"]),
            int(row["dirty_bitmap_mib_s"]),
        )
        for row in csv.DictReader(text.splitlines())
    }
