# SPDX-License-Identifier: MIT
"""``pysampler sample``: measure, and print the vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from pysampler.cli.arguments import checked, whole_number
from pysampler.cli.output import Output
from pysampler.cli.progress import ProgressDisplay, print_summary
from pysampler.cli.signals import EndingSignals
from pysampler.cli.source_arguments import add_source_arguments, blocks_of
from pysampler.cli.streams import say
from pysampler.errors import PysamplerError, UsageError
from pysampler.measuring import make_observer
from pysampler.qemu.dirty_rate import SAMPLE_PAGES_MAX, SAMPLE_PAGES_MIN
from pysampler.sampling.compression import CODECS, parse_codecs
from pysampler.sampling.observer import THREADS_MAX
from pysampler.sampling.plan import PROFILES
from pysampler.sampling.sampler import Sampler, check_calc_time
from pysampler.units import parse_duration_ms
from pysampler.vector.interrupted import MeasurementInterruptedError
from pysampler.vector.measurement import Mode
from pysampler.vector.remarks import remarks
from pysampler.vector.schedule import periods_ms

if TYPE_CHECKING:
    import argparse

    from pysampler.sampling.observer import Observer
    from pysampler.units import CalcTimeUnit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_source_arguments(parser)
    parser.add_argument(
        "--calc-time",
        type=checked(_calc_time),
        metavar="TIME",
        default="60s",
        help="how long: 60s, 500ms, 2m (60s)",
    )
    parser.add_argument(
        "--mode",
        choices=[mode.value for mode in Mode],
        default=Mode.PAGE_SAMPLING.value,
        help="how dirty pages are found: in a sample of the pages, or exactly, by tracking writes"
        " (page-sampling)",
    )
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        help="; ".join(f"{p.name}: {p.summary}" for p in PROFILES.values()) + " (qemu)",
    )
    parser.add_argument(
        "--sample-pages",
        type=whole_number("sample-pages", low=SAMPLE_PAGES_MIN, high=SAMPLE_PAGES_MAX),
        metavar="N",
        help=f"samples per GiB, {SAMPLE_PAGES_MIN} to {SAMPLE_PAGES_MAX} ("
        + ", ".join(f"{p.name} {p.sample_pages}" for p in PROFILES.values())
        + ")",
    )
    parser.add_argument(
        "--seed",
        type=whole_number("seed", low=0, high=(1 << 64) - 1),
        metavar="N",
        help="draw the same pages again",
    )
    parser.add_argument(
        "--threads",
        type=whole_number("threads", low=1, high=THREADS_MAX),
        metavar="N",
        default=1,
        help="threads that read (1)",
    )
    parser.add_argument(
        "--measure-compression",
        type=checked(parse_codecs),
        metavar="CODEC,...",
        help=f"also how well sampled pages compress: {','.join(CODECS)}",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write the vector here, atomically")
    parser.add_argument("--quiet", action="store_true", help="no progress, summary or remarks")


def run(args: argparse.Namespace) -> int:
    """Measure and print the vector, also that of a measurement that ended early."""
    calc_time_ms, unit = args.calc_time
    mode = Mode(args.mode)
    if mode is not Mode.PAGE_SAMPLING:
        _check_exact_mode(args)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    failure: PysamplerError | None = None
    sampler: Sampler | None = None
    with EndingSignals() as signals, Output(args.output) as output:
        try:
            with signals.interrupting():
                observer = _observer(args, mode, calc_time_ms)
                shown = console.is_terminal and not args.quiet
                display = ProgressDisplay(console, shown=shown, check=signals.check)
                with Sampler(observer, calc_time_ms, unit, display) as sampler, display:
                    for so_far in sampler:
                        display.show(so_far)
        except MeasurementInterruptedError as error:
            failure = error
        except KeyboardInterrupt:
            if sampler is None:
                raise
            failure = MeasurementInterruptedError("interrupted", sampler.measurement)
        measurement = None if sampler is None else sampler.measurement
        if measurement is not None:
            output.write(measurement.to_json())
    if failure is not None:
        n_periods = 0 if measurement is None else len(measurement.periods)
        left = f"{n_periods} of {len(periods_ms(calc_time_ms))} periods were measured"
        raise MeasurementInterruptedError(f"{failure}; {left}", measurement)
    if measurement is not None and not args.quiet:
        if console.is_terminal:
            print_summary(console, measurement)
        for line in remarks(measurement):
            say(args.verb, f"warning: {line}")
    return 0


def _calc_time(text: str) -> tuple[int, CalcTimeUnit]:
    calc_time_ms, unit = parse_duration_ms(text, "calc-time")
    check_calc_time(calc_time_ms)
    return calc_time_ms, unit


def _observer(args: argparse.Namespace, mode: Mode, calc_time_ms: int) -> Observer:
    return make_observer(
        blocks_of(args),
        mode,
        profile=PROFILES[args.profile or "qemu"],
        sample_pages=args.sample_pages,
        seed=args.seed,
        codecs=args.measure_compression or (),
        n_compares=len(periods_ms(calc_time_ms)),
        pid=args.pid,
        threads=args.threads,
    )


def _check_exact_mode(args: argparse.Namespace) -> None:
    if args.mode == Mode.DIRTY_RING.value and args.pid is None:
        raise UsageError("mode dirty-ring needs --pid: it counts for the vCPUs of a process")
    for name in ("profile", "sample_pages", "seed", "measure_compression"):
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise UsageError(f"--{option} is used only in mode page-sampling, not in {args.mode}")
