# SPDX-License-Identifier: MIT
"""How often the vector's 95 % interval holds the truth: few dirty samples, samples out of sight.

    python bench/coverage.py

Guests are invented: their dirty pages lie in runs of 1, 16 or 512 pages, and those that cannot be
read in runs of 512. Of each, many samples are drawn, and the vector's own interval is asked. The
last two columns say how often the truth lay above its upper end, and below its lower one.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from pysampler.vector.measurement import Measurement

N_SAMPLED = 512
N_PAGES = N_SAMPLED * 128
N_GUESTS, N_DRAWS = 100, 1000

Flags = NDArray[np.bool_]

EXPECTED = {"0.05 to 1": (0.05, 1), "1 to 8": (1, 8), "8 to 256": (8, 256)}
# (share of pages out of sight, share of those that are dirty; None for that of all others)
UNSEEN: list[tuple[float, float | None]] = [
    (0, None), (0.05, None), (0.05, 0), (0.05, 1), (0.5, None), (0.5, 0), (0.5, 1),
]  # fmt: skip


def runs(rng: np.random.Generator, n_pages: int, length: int) -> Flags:
    """Return a memory with so many pages chosen, in runs of a length or what is left."""
    chosen = np.zeros(N_PAGES, dtype=np.bool_)
    while (left := n_pages - np.count_nonzero(chosen)) > 0:
        run = min(length, int(left))
        begin = rng.integers(N_PAGES - run + 1)
        chosen[begin : begin + run] = True
    return chosen


def vector(dirty: Flags, unseen: Flags, *, stratified: bool) -> Measurement:
    """Return the vector of drawn samples, one draw for each period; shapes draws x samples."""
    seen_dirty = dirty & ~unseen
    details: dict[str, object] = {"unreadable": unseen.sum(axis=1).tolist()}
    if stratified:
        details["changes"] = (seen_dirty[:, 1:] != seen_dirty[:, :-1]).sum(axis=1).tolist()
    return Measurement(
        page_size=4096,
        periods=tuple(range(1, len(dirty) + 1)),
        n_dirty_pages=tuple(seen_dirty.sum(axis=1).tolist()),
        n_sampled_pages=N_SAMPLED,
        n_zero_pages=0,
        n_total_pages=N_PAGES,
        details=details,
    )


def misses(
    rng: np.random.Generator,
    expected: tuple[float, float],
    unseen_share: float,
    unseen_dirty: float | None,
    *,
    stratified: bool,
) -> tuple[float, float]:
    """Return how often the truth lies above the interval, and below it."""
    above = below = 0.0
    stratum = N_PAGES // N_SAMPLED
    for _ in range(N_GUESTS):
        samples = np.exp(rng.uniform(*np.log(expected)))
        dirty = runs(rng, max(1, round(samples * stratum)), int(rng.choice([1, 16, 512])))
        unseen = runs(rng, round(unseen_share * N_PAGES), 512)
        if unseen_dirty is not None:
            dirty[unseen] = unseen_dirty > 0
        vfns = (
            np.arange(N_SAMPLED) * stratum + rng.integers(stratum, size=(N_DRAWS, N_SAMPLED))
            if stratified
            else rng.integers(N_PAGES, size=(N_DRAWS, N_SAMPLED))
        )
        curve = vector(dirty[vfns], unseen[vfns], stratified=stratified).curve()
        truth = np.count_nonzero(dirty)
        above += float(np.mean(np.ceil(curve.high) < truth)) / N_GUESTS
        below += float(np.mean(np.floor(curve.low) > truth)) / N_GUESTS
    return above, below


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    seed = parser.parse_args().seed
    draws = N_GUESTS * N_DRAWS
    table = Table(title=f"Coverage of 95 % intervals, {N_SAMPLED} samples, {draws} draws a row")
    for name in ("unseen", "of them dirty", "expected dirty", "profile", "coverage"):
        table.add_column(name, justify="right")
    table.add_column("above", justify="right")
    table.add_column("below", justify="right")
    words = {None: "as others", 0: "none", 1: "all"}
    for share, unseen_dirty in UNSEEN:
        for name, expected in EXPECTED.items():
            for stratified in (False, True):
                rng = np.random.default_rng(seed)
                above, below = misses(rng, expected, share, unseen_dirty, stratified=stratified)
                table.add_row(
                    f"{share:.0%}",
                    words[unseen_dirty] if share else "-",
                    name,
                    "fast" if stratified else "qemu",
                    f"{1 - above - below:.1%}",
                    f"{above:.1%}",
                    f"{below:.1%}",
                )
    Console().print(table)


if __name__ == "__main__":
    main()
