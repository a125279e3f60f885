# SPDX-License-Identifier: MIT
"""Measure what a prediction costs: the whole default grid, side by side in one run.

The grid is the published one, 8 bandwidths x 6 downtime-limits; the ensemble has 200 members. What
is imported once is not counted. All runs in one thread, so its CPU time is what an idle machine
takes; that is what the verdict goes by, since a busy one may take any time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pysampler import Measurement, Precopy, predict
from pysampler.prediction.ensemble import build_ensemble
from pysampler.prediction.monotone import migrate_table
from pysampler.prediction.prediction import MEMBERS, PUBLISHED_BANDWIDTHS, PUBLISHED_LIMITS_MS
from pysampler.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "vector-32gib-memcached.json"


def main() -> None:
    """Print a table of medians and what was wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--vector", default=str(GOLDEN), help="a vector (the published one)")
    parser.add_argument("--rounds", type=int, default=9, help="how often (9)")
    args = parser.parse_args()
    measurement = Measurement.from_json(Path(args.vector).read_bytes())
    ensemble = build_ensemble(measurement, MEMBERS, seed=0)
    grid = PUBLISHED_BANDWIDTHS, PUBLISHED_LIMITS_MS
    contenders: list[tuple[str, Callable[[], object], float | None]] = [
        ("qemu model, the whole grid", lambda: predict(measurement), 1.0),
        ("  of that: fits", lambda: build_ensemble(measurement, MEMBERS, seed=0), None),
        ("  of that: migrations", lambda: migrate_table(ensemble, Precopy(), *grid), None),
        ("published model, the whole grid", lambda: predict(measurement, model="published"), 5e-3),
    ]
    wall: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
    cpu: dict[str, list[float]] = {name: [] for name, _, _ in contenders}
    for _ in range(args.rounds):
        for name, run, _ in contenders:
            began_wall, began_cpu = time.perf_counter(), time.process_time()
            run()
            cpu[name].append(time.process_time() - began_cpu)
            wall[name].append(time.perf_counter() - began_wall)
    table = Table("what", "CPU time", "wall time", "wanted", "")
    for name, _, wanted in contenders:
        median = statistics.median(cpu[name])
        verdict = "" if wanted is None else "holds" if median <= wanted else "does not hold"
        table.add_row(
            name,
            format_duration(median),
            format_duration(statistics.median(wall[name])),
            "" if wanted is None else f"<= {format_duration(wanted)}",
            verdict,
        )
    Console().print(table)


if __name__ == "__main__":
    main()
