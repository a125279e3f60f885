# SPDX-License-Identifier: MIT
"""What exact tracking costs: the writer per first write of a page, the observer per GiB.

The writer writes one byte of each page of a part of the memory, in random order. Each row is the
median of all rounds; modes take turns within a round, so that what slows the machine down for a
while slows down all of them.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import statistics
import threading
import time
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from pysampler.memory.source import buffer_block
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing
from pysampler.tracking.full_comparison import FullComparison
from pysampler.units import GIB, format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from pysampler.memory.ramblock import RAMBlock
    from pysampler.sampling.observer import Observer

PAGE_SIZE = 4096
PART = 10  # one page in ten is written

MODES: dict[str, Callable[[RAMBlock], Observer] | None] = {
    "no tracking": None,
    "dirty-bitmap": lambda block: DirtyBitmap([block]),
    "dirty-ring": lambda block: DirtyRing([block], {0: threading.get_native_id()}),
    "full comparison": lambda block: FullComparison([block]),
}


def memfd(size: int) -> mmap.mmap:
    """Return the mapping of a memfd, every page present."""
    fd = os.memfd_create("tracked")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    os.close(fd)
    np.frombuffer(memory, dtype=np.uint8)[::PAGE_SIZE] = 1
    return memory


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def one_round(
    memory: mmap.mmap, mode: str, order: np.ndarray, times: dict[tuple[str, str], list[float]]
) -> None:
    """Measure one mode once."""
    bytes_of_pages = np.frombuffer(memory, dtype=np.uint8)[::PAGE_SIZE]
    gib = len(memory) / GIB

    def write() -> None:
        bytes_of_pages[order] += 1

    def note(what: str, value: float) -> None:
        times[mode, what].append(value)

    # After an end of tracking the first write of a page of a memfd is a fault once more.
    bytes_of_pages[:] += 1
    make = MODES[mode]
    if make is None:
        note("write", seconds(write) / len(order) * 1e9)
        note("write again", seconds(write) / len(order) * 1e9)
        return
    observer = make(buffer_block(memory))
    try:
        note("prepare", seconds(observer.warm_up) / gib * 1e3)
        note("baseline", seconds(observer.baseline) / gib * 1e3)
        note("compare, none", seconds(observer.compare) / gib * 1e3)
        note("write", seconds(write) / len(order) * 1e9)
        note("write again", seconds(write) / len(order) * 1e9)
        note("compare, 10 %", seconds(observer.compare) / gib * 1e3)
        found = observer.compare().pages
        assert found == len(order), f"{mode}: {found} of {len(order)} pages"
    finally:
        note("close", seconds(observer.close) / gib * 1e3)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", default="1G", help="size of the tracked memfd (1G)")
    parser.add_argument("--rounds", type=int, default=7, help="(7)")
    args = parser.parse_args()
    memory = memfd(parse_size(args.memory))
    rng = np.random.default_rng(1)
    n_pages = len(memory) // PAGE_SIZE
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(args.rounds):
        order = rng.permutation(n_pages)[: n_pages // PART]
        for mode in rng.permutation(list(MODES)).tolist():
            one_round(memory, mode, order, times)
    console = Console(width=120)
    console.print(
        f"{format_size(len(memory))} of memfd, {n_pages // PART} pages written,"
        f" median of {args.rounds} rounds; Linux {platform.release()}"
    )
    columns = {
        "write": "first write, ns",
        "write again": "second write, ns",
        "prepare": "prepare, ms/GiB",
        "baseline": "baseline, ms/GiB",
        "compare, none": "compare, none dirty, ms/GiB",
        "compare, 10 %": "compare, 10 % dirty, ms/GiB",
        "close": "close, ms/GiB",
    }
    table = Table("mode", *columns.values(), box=None)
    for mode in MODES:
        cells = (statistics.median(times[mode, what] or [np.nan]) for what in columns)
        table.add_row(mode, *("" if np.isnan(cell) else f"{cell:.1f}" for cell in cells))
    console.print(table)


if __name__ == "__main__":
    main()
