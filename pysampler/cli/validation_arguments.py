# SPDX-License-Identifier: MIT
"""The arguments of ``pysampler validate``, and the experiment that they ask for."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from pysampler.cli.arguments import checked, whole_number
from pysampler.errors import UsageError
from pysampler.qemu.dirty_rate import (
    CALC_TIME_MAX_MS,
    CALC_TIME_MIN_MS,
    SAMPLE_PAGES_MAX,
    SAMPLE_PAGES_MIN,
)
from pysampler.sampling.plan import PROFILES
from pysampler.units import MIB, format_size, parse_duration_ms, parse_size
from pysampler.validation.experiment import CALC_TIMES_MS, Experiment
from pysampler.validation.row import DIRTY_BITMAP
from pysampler.validation.store import default_path
from pysampler.validation.workload import WORKLOADS

if TYPE_CHECKING:
    import argparse

_SIZE_MIN = 64 * MIB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--sizes",
        type=checked(_sizes),
        metavar="SIZE,...",
        default="1G,4G",
        help="guests' memory (1G,4G)",
    )
    parser.add_argument(
        "--calc-times",
        type=checked(_calc_times),
        metavar="TIMES",
        default="100ms..2s",
        help="100ms..2s for the published ones in that range, or a list: 100ms,500ms (100ms..2s)",
    )
    parser.add_argument(
        "--workload", choices=WORKLOADS, default="uniform", help="what the guest writes (uniform)"
    )
    parser.add_argument(
        "--wps",
        type=_wps,
        metavar="N",
        default=3_000_000,
        help="writes a second, or max (3000000)",
    )
    parser.add_argument(
        "--repeat",
        type=whole_number("repeat", low=1, high=10_000),
        metavar="N",
        default=1,
        help="measurements of a cell (1)",
    )
    parser.add_argument(
        "--profile",
        type=checked(_profiles),
        metavar="NAME,...",
        default="qemu,fast",
        help="profiles of page sampling (qemu,fast)",
    )
    parser.add_argument(
        "--sample-pages",
        type=_sample_pages,
        metavar="N",
        default=SAMPLE_PAGES_MAX,
        help="samples per GiB of all profiles, or `profile` for each one's own"
        f" ({SAMPLE_PAGES_MAX})",
    )
    parser.add_argument(
        "--no-bitmap", action="store_true", help="leave out dirty-bitmap, which slows the guest"
    )
    parser.add_argument(
        "--seed",
        type=whole_number("seed", low=0, high=2**63),
        metavar="N",
        help="repeat the guests, the draws and the order",
    )
    parser.add_argument("--json", action="store_true", help="print rows as JSON Lines")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="write a report here")
    parser.add_argument(
        "--store", metavar="FILE", help=f"SQLite file of all results ({default_path()})"
    )
    parser.add_argument(
        "--compare", action="store_true", help="measure nothing; compare the last stored runs"
    )


def experiment_of(args: argparse.Namespace) -> Experiment:
    """Return the experiment; without --seed its seed is random."""
    return Experiment(
        workload=args.workload,
        sizes=args.sizes,
        calc_times_ms=args.calc_times,
        methods=(*args.profile, *(() if args.no_bitmap else (DIRTY_BITMAP,))),
        repeats=args.repeat,
        wps=args.wps,
        sample_pages=args.sample_pages,
        seed=secrets.randbits(32) if args.seed is None else args.seed,
    )


def _profiles(text: str) -> tuple[str, ...]:
    profiles = tuple(dict.fromkeys(text.split(",")))
    for name in profiles:
        if name not in PROFILES:
            raise UsageError(f"profile must be of {', '.join(PROFILES)} (got {name!r})")
    return profiles


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(parse_size(part, "sizes") for part in text.split(","))
    for size in sizes:
        if size < _SIZE_MIN or size % MIB:
            raise UsageError(
                f"sizes must be whole MiB of {format_size(_SIZE_MIN)} or more"
                f" (got {format_size(size)})"
            )
    return tuple(dict.fromkeys(sizes))


def _sample_pages(text: str) -> int | None:
    """Return the samples per GiB of all profiles; None for each one's own."""
    if text == "profile":
        return None
    return whole_number("sample-pages", low=SAMPLE_PAGES_MIN, high=SAMPLE_PAGES_MAX)(text)


def _wps(text: str) -> int:
    """Return writes a second; 0 for as many as the guest can."""
    return 0 if text == "max" else whole_number("wps", low=1, high=10**9)(text)


def _calc_times(text: str) -> tuple[int, ...]:
    """Return the calc-times in ms of ``100ms..2s`` or ``100ms,500ms``."""
    first, dots, last = text.partition("..")
    if dots:
        low, high = (parse_duration_ms(end, "calc-times")[0] for end in (first, last))
        times = tuple(time for time in CALC_TIMES_MS if low <= time <= high)
        if not times:
            raise UsageError(f"calc-times: none of {CALC_TIMES_MS} ms lies in {text}")
    else:
        times = tuple(parse_duration_ms(part, "calc-times")[0] for part in text.split(","))
    for calc_time in times:
        if not CALC_TIME_MIN_MS <= calc_time <= CALC_TIME_MAX_MS:
            raise UsageError(f"calc-times must be from 50 ms to 60 s (got {calc_time} ms)")
    return tuple(dict.fromkeys(times))
