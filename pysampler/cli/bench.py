# SPDX-License-Identifier: MIT
"""``pysampler bench``: what hashing costs on this machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from pysampler.benchmark.hashing import (
    PASS_SHARE,
    HashBenchmark,
    HashCase,
    PassCost,
    Result,
    pass_cost,
)
from pysampler.benchmark.plot import draw_results
from pysampler.cli.arguments import checked, size, whole_number
from pysampler.cli.picture import picture_file
from pysampler.cli.streams import put, say
from pysampler.cli.tables import print_table
from pysampler.errors import UsageError
from pysampler.host import machine
from pysampler.qemu.dirty_rate import SAMPLE_PAGES_DEFAULT, SAMPLE_PAGES_MAX, SAMPLE_PAGES_MIN
from pysampler.units import GIB, format_size, parse_size
from pysampler.vector.schedule import FIRST_PERIOD_MS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--guest-memory",
        type=checked(_guest_memory),
        metavar="SIZE",
        default="32G",
        help="guest whose pass is priced (32G)",
    )
    parser.add_argument(
        "--sample-pages",
        type=whole_number("sample-pages", low=SAMPLE_PAGES_MIN, high=SAMPLE_PAGES_MAX),
        metavar="N",
        default=SAMPLE_PAGES_DEFAULT,
        help=f"samples per GiB of that pass ({SAMPLE_PAGES_DEFAULT})",
    )
    parser.add_argument(
        "--memory",
        type=size("memory"),
        metavar="SIZE",
        default="512M",
        help="memory to read, twice: of 4 KiB and of 2 MiB pages; several times the caches (512M)",
    )
    parser.add_argument(
        "--rounds",
        type=whole_number("rounds", low=1, high=10_000),
        metavar="N",
        default=15,
        help="timings of each case (15)",
    )
    parser.add_argument(
        "--threads",
        type=whole_number("threads", low=1, high=256),
        metavar="N",
        help="most threads that read (one per CPU)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--plot", metavar="FILE", help="draw it; .svg, .png or .pdf")


def run(args: argparse.Namespace) -> int:
    """Time, then print."""
    facts = machine.facts()
    guest_memory, sample_pages, rounds = args.guest_memory, args.sample_pages, args.rounds
    threads = facts["cpus"] if args.threads is None else args.threads
    console = Console(stderr=True, highlight=False)
    with picture_file(args.plot) as save:
        benchmark = HashBenchmark(args.memory, threads)
        for _ in track(
            benchmark.run(rounds),
            "timing",
            total=rounds,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ):
            pass
        results = benchmark.results()
        costs = [
            pass_cost(result, guest_memory, sample_pages)
            for result in results
            if result.case.cold
            and not (result.case.huge or result.case.remote or result.case.threads > 1)
        ]
        if args.json:
            put(json.dumps(_as_json(results, costs, facts, guest_memory, sample_pages), indent=1))
        else:
            print_table(_results_table(results, facts, threads))
            print_table(_cost_table(costs, guest_memory, sample_pages))
        _remark([*benchmark.skipped, *_instability(results)])
        if save is not None:
            save(draw_results(results, facts))
    return 0


def _guest_memory(text: str) -> int:
    n_bytes = parse_size(text, "guest-memory")
    if n_bytes < GIB:
        raise UsageError(f"guest-memory must be at least 1 GiB (got {text})")
    return n_bytes


def _as_json(
    results: Sequence[Result],
    costs: Sequence[PassCost],
    facts: dict[str, Any],
    guest_memory: int,
    sample_pages: int,
) -> dict[str, Any]:
    return {
        "machine": facts,
        "results": [result.to_dict() for result in results],
        "pass": {
            "guest-memory": guest_memory,
            "sample-pages": sample_pages,
            "costs": [
                {
                    "hash": cost.hash,
                    "prefetch": cost.prefetch,
                    "ms": round(cost.milliseconds, 3),
                    "largest-sample-pages": cost.sample_pages,
                }
                for cost in costs
            ],
        },
    }


def _columns(threads: int) -> dict[str, HashCase]:
    """Return column titles, each with its case; the hash is left open."""
    return {
        "in cache": HashCase("", cold=False),
        "cold 4K": HashCase(""),
        "prefetch": HashCase("", prefetch=True),
        "cold 2M": HashCase("", huge=True),
        "prefetch 2M": HashCase("", huge=True, prefetch=True),
        "readv": HashCase("", remote=True),
        **{f"{n} threads": HashCase("", prefetch=True, threads=n) for n in range(2, threads + 1)},
    }


def _results_table(results: Sequence[Result], facts: dict[str, Any], threads: int) -> Table:
    by_case = {result.case: result for result in results}
    columns = _columns(threads)
    table = Table(
        title=f"ns per 4 KiB page (GB/s): {facts['cpu']}{' (virtual)' * facts['virtual']},"
        f" Linux {facts['kernel']}, zlib {facts['zlib']}, {facts['simd']}",
        caption="cold: pages at random, in no cache, 4 KiB or 2 MiB backing; prefetch: pages to"
        " come are prefetched while others are hashed; readv: copied by process_vm_readv. CPU time"
        " of one thread; in the last columns wall time of several, cold 4K with prefetch. ? marks"
        " an unstable figure",
    )
    table.add_column("hash")
    for title in columns:
        table.add_column(title, justify="right")
    for name in dict.fromkeys(result.case.hash for result in results):
        cells = []
        for case in columns.values():
            result = by_case.get(
                HashCase(name, case.cold, case.huge, case.prefetch, case.remote, case.threads)
            )
            cells.append(
                f"{result.ns_per_page:.0f} ({result.gb_per_s:.1f}){'?' * result.unstable}"
                if result
                else "-"
            )
        table.add_row(name, *cells)
    return table


def _cost_table(costs: Sequence[PassCost], guest_memory: int, sample_pages: int) -> Table:
    table = Table(
        title=f"One pass over {format_size(guest_memory)} at {sample_pages} sample-pages,"
        " one thread, cold 4K"
    )
    table.add_column("hash")
    table.add_column("prefetch")
    table.add_column("ms", justify="right")
    table.add_column(
        f"largest sample-pages within {PASS_SHARE:.0%} of {FIRST_PERIOD_MS} ms", justify="right"
    )
    for cost in costs:
        limit = f"{cost.sample_pages}"
        if cost.sample_pages < SAMPLE_PAGES_MIN:
            limit = f"none ({SAMPLE_PAGES_MIN} is the least)"
        table.add_row(
            cost.hash, "yes" if cost.prefetch else "no", f"{cost.milliseconds:.2f}", limit
        )
    return table


def _instability(results: Sequence[Result]) -> list[str]:
    unstable = sum(result.unstable for result in results)
    if not unstable:
        return []
    cure = "let nothing else run, or give more --rounds, before comparing them"
    return [f"{unstable} of {len(results)} figures are unstable: {cure}"]


def _remark(lines: Sequence[str]) -> None:
    for line in lines:
        say("bench", f"warning: {line}")
