# SPDX-License-Identifier: MIT
"""What it takes this host to migrate a zero page: the number for `predict --zero-page-cost`.

    python bench/zero_pages.py --qemu PATH --memory 8G

A stopped guest that is all zeros is migrated between two QEMUs of this machine (TCG, a unix
socket) whose RAM is of the same kind: not touched by anybody yet or allocated by QEMU, its own or
shared. The order is shuffled anew in each round. Needs qemu.qmp.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
import time

from migration_guest import GiveUpError, Qemu, prepare
from rich.console import Console
from rich.table import Table

from pysampler.guest.ram import available_memory
from pysampler.units import MIB, format_size, parse_size

KINDS = {
    "anonymous, untouched": "memory-backend-ram",
    "anonymous, allocated": "memory-backend-ram,prealloc=on",
    "shared memfd, untouched": "memory-backend-memfd,share=on",
    "shared memfd, allocated": "memory-backend-memfd,share=on,prealloc=on",
}
LIMIT_S = 300


def us_of_a_page(program: str, directory: str, ram_mib: int, backend: str) -> float:
    """Migrate once; return the total time over the zero pages, in us."""
    uri = f"unix:{directory}/migration"
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(Qemu(program, directory, ram_mib, backend=backend))
        stack.enter_context(Qemu(program, directory, ram_mib, "-incoming", uri, backend=backend))
        # As fast as it goes, and the guest is not stopped before the end is near.
        source.command("migrate-set-parameters", max_bandwidth=10**13, downtime_limit=1)
        source.command("migrate", uri=uri)
        deadline = time.monotonic() + LIMIT_S
        while (reply := source.command("query-migrate")).get("status") != "completed":
            if reply.get("status") == "failed" or time.monotonic() > deadline:
                raise GiveUpError(
                    f"the migration did not end: {reply.get('error-desc', 'too slow')}"
                )
            time.sleep(0.02)
    return float(1000 * reply["total-time"] / reply["ram"]["duplicate"])


def measure(args: argparse.Namespace, directory: str) -> dict[str, list[float]]:
    """Return the times of each kind of memory."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    rng = random.Random(1)  # noqa: S311 - nothing secret
    for _ in range(args.rounds):
        for kind in rng.sample(list(KINDS), len(KINDS)):
            us = us_of_a_page(args.qemu, directory, args.memory // MIB, KINDS[kind])
            found[kind].append(us)
    return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="the program")
    parser.add_argument("--memory", type=parse_size, default="4G", help="of the guest (4G)")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    try:
        prepare(args.qemu)
        if 2 * args.memory > 0.9 * available_memory():
            raise GiveUpError(f"two of {format_size(args.memory)} do not fit in what is free")
        with tempfile.TemporaryDirectory() as directory:
            found = measure(args, directory)
    except GiveUpError as error:
        print(f"zero_pages.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    table = Table("RAM of both", "median", "least", "most", title="us to migrate a zero page")
    for kind, times in found.items():
        figures = statistics.median(times), min(times), max(times)
        table.add_row(kind, *(f"{us:.2f}" for us in figures))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
