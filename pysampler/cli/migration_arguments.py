# SPDX-License-Identifier: MIT
"""Arguments of a migration: how it is set up, for the verbs that predict and advise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.cli.arguments import checked
from pysampler.errors import UsageError
from pysampler.prediction.precopy_model import LIMITS, Precopy
from pysampler.prediction.prediction import as_rate
from pysampler.units import parse_duration_ms, parse_exact_ms

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable


def add_migration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the migration."""
    parser.add_argument(
        "--link",
        type=checked(lambda text: as_rate(text, "link")),
        metavar="RATE",
        help="what the last pass gets (the bandwidth)",
    )
    parser.add_argument(
        "--deadline",
        type=checked(deadline_ms),
        metavar="TIME",
        help="longer does not converge (60m)",
    )
    parser.add_argument("--multifd", action="store_true", help="pages travel in multifd packets")
    parser.add_argument(
        "--zero-page-detection",
        choices=("legacy", "multifd", "none"),
        help="how zero pages are found (legacy, or multifd with --multifd)",
    )
    parser.add_argument(
        "--latency",
        type=checked(_latency_ms),
        metavar="TIME",
        default=Precopy.latency_ms,
        help="round trip of the link",
    )
    parser.add_argument(
        "--logging-cost",
        type=_microseconds("logging-cost", "logging_us"),
        metavar="US",
        default=Precopy.logging_us,
        help="us that dirty logging costs the guest at a page's first write (0; KVM about 1.3)",
    )
    parser.add_argument(
        "--zero-page-cost",
        type=_microseconds("zero-page-cost", "zero_page_us"),
        metavar="US",
        help="us that it costs the host to read a zero page (0; 0.1 to 5 were seen)",
    )
    parser.add_argument(
        "--unfinished", action="store_true", help="take a vector whose status is not measured"
    )


def precopy_of(args: argparse.Namespace) -> Precopy:
    """Return how the migration is set up.

    Raises:
        UsageError: a value is out of range.
    """
    return Precopy(
        link=args.link,
        deadline_ms=Precopy.deadline_ms if args.deadline is None else args.deadline,
        multifd=args.multifd,
        zero_pages=args.zero_page_detection,
        latency_ms=args.latency,
        logging_us=args.logging_cost,
        zero_page_us=args.zero_page_cost,
    )


def deadline_ms(text: str) -> float:
    """Return the ms after which a migration does not converge.

    Raises:
        UsageError: it is no duration, or out of range.
    """
    ms = parse_duration_ms(text, "deadline")[0]
    return _within("deadline_ms", ms, f"deadline: {text!r}")


def _latency_ms(text: str) -> float:
    return _within("latency_ms", parse_exact_ms(text, "latency"), f"latency: {text!r}")


def _microseconds(option: str, member: str) -> Callable[[str], float]:
    """Return the type of a number of us, whose limits are those of a member of Precopy."""

    def parse(text: str) -> float:
        try:
            value = float(text.replace("_", " "))  # which Python, but nobody else, takes in one
        except ValueError:
            raise UsageError(f"{option}: {text[:24]!r} is not a number of us") from None
        return _within(member, value, f"{option}: {text[:24]!r}")

    return checked(parse)


def _within(member: str, value: float, what: str) -> float:
    low, high = LIMITS[member]
    if not low <= value <= high:
        unit = member.rpartition("_")[2]
        raise UsageError(f"{what} is not between {low:.0f} and {high:.0f} {unit}")
    return value
