# SPDX-License-Identifier: MIT
"""Which cost of a page's first write explains the published dirty-bitmap column.

    python bench/logging_cost.py [--cost US] [--rounds N]

The published table (tests/golden/accuracy-3Mwps.csv) has a writer of about 3 million uniform writes
a second, which slows down by 57 to 76 % while KVM logs its writes. Each write to a page that is
still clean takes a fault. With N pages, of which a fraction x is clean, a closed loop of writes
that last 1 / wps each goes on at

    r = 1 / (1 / wps + cost * x),    dx/dt = -r * x / N.

The cost is fitted to the logarithms of the column, from 300 ms on; --cost sets it instead. Then an
emulated guest with `--logging-cost` of that is measured in mode dirty-bitmap, as many GiB as the
machine has room for; its pace is that of the writer, and it makes up for nothing.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize_scalar

from pysampler import find_blocks, track
from pysampler.guest.process import GuestProcess
from pysampler.host.machine import available_bytes

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "accuracy-3Mwps.csv"
WPS = 3_013_680  # of the table's writer
PAGES_PER_GIB = 1 << 18
MIB_PER_PAGE = 4096 / (1 << 20)
FIT_FROM_MS = 300
STEPS = 2000


def modelled(gib: int, ms: int, cost_us: float) -> float:
    """Return MiB/s of distinct pages written in a time."""
    pages, dirty, step = gib * PAGES_PER_GIB, 0.0, ms / 1000 / STEPS
    for _ in range(STEPS):
        clean = 1 - dirty / pages
        dirty += clean * step / (1 / WPS + cost_us * 1e-6 * clean)
    return dirty * MIB_PER_PAGE / (ms / 1000)


def fitted(published: dict[tuple[int, int], float]) -> float:
    """Return the cost in us with which the column comes out best."""

    def deviation(cost_us: float) -> float:
        return float(
            np.mean(
                [
                    math.log(modelled(gib, ms, cost_us) / rate) ** 2
                    for (gib, ms), rate in published.items()
                    if ms >= FIT_FROM_MS
                ]
            )
        )

    return float(minimize_scalar(deviation, bounds=(0.1, 5), method="bounded").x)


def measured(gib: int, times_ms: list[int], cost_us: float, rounds: int) -> dict[int, float]:
    """Return the median MiB/s of an emulated guest by calc-time."""
    with GuestProcess(
        f"--memory={gib}G",
        f"--workload=uniform:wps={WPS},lag=0",
        f"--logging-cost={cost_us:.3f}us",
    ) as guest:
        time.sleep(2)
        blocks, rates = find_blocks(guest.pid), {}
        for ms in times_ms:
            found = []
            for _ in range(rounds):
                with track(blocks, calc_time=f"{ms}ms", pid=guest.pid) as sampler:
                    *_, vector = sampler
                seconds = vector.details["periods-ns"][-1] / 1e9
                found.append(vector.n_dirty_pages[-1] * MIB_PER_PAGE / seconds)
            rates[ms] = statistics.median(found)
    return rates


def main() -> None:
    """Fit, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cost", type=float, metavar="US")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with GOLDEN.open() as file:
        published = {
            (int(row["region_gib"]), int(row["calc_time_ms"])): float(row["dirty_bitmap_mib_s"])
            for row in csv.DictReader(file)
        }
    cost_us = args.cost or fitted(published)
    print(f"cost of a page's first write: {cost_us:.2f} us")
    print("  GiB     ms  published MiB/s    model           emulated")
    for gib in sorted({gib for gib, _ in published}):
        times_ms = [ms for size, ms in published if size == gib]
        fits = available_bytes() > (gib + 1) << 30
        rates = measured(gib, times_ms, cost_us, args.rounds) if fits else {}
        for ms in times_ms:
            rate, model = published[gib, ms], modelled(gib, ms, cost_us)
            line = f"{gib:5} {ms:6} {rate:12.0f} {model:12.0f} {model / rate - 1:+5.0%}"
            if ms in rates:
                line += f" {rates[ms]:12.0f} {rates[ms] / rate - 1:+5.0%}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
