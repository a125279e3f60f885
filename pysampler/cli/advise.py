# SPDX-License-Identifier: MIT
"""``pysampler advise``: what would make a migration of this guest converge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pysampler.cli.arguments import checked, integer
from pysampler.cli.migration_arguments import add_migration_arguments, precopy_of
from pysampler.cli.pasted import measurements_in
from pysampler.cli.prediction_tables import format_probability
from pysampler.cli.streams import put
from pysampler.cli.tables import print_table
from pysampler.cli.vector_input import read_text, read_vector, with_name
from pysampler.errors import FormatError, UsageError
from pysampler.prediction.prediction import as_limit_ms, as_rate, format_limit
from pysampler.printable import printable
from pysampler.units import format_rate
from pysampler.vector.measurement import Measurement

if TYPE_CHECKING:
    import argparse

    from pysampler.prediction.advise import Advice, QuickVerdict

_MOST_VCPUS = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "vector", nargs="?", default="-", metavar="FILE", help="a vector; - or nothing: stdin"
    )
    parser.add_argument(
        "--bandwidth",
        type=checked(as_rate),
        metavar="RATE",
        required=True,
        help="max-bandwidth: 10Gbps",
    )
    parser.add_argument(
        "--downtime",
        type=checked(as_limit_ms),
        metavar="TIME",
        required=True,
        help="downtime-limit: 300ms",
    )
    parser.add_argument(
        "--vcpus",
        type=integer("vcpus", low=1, high=_MOST_VCPUS, bounds=f"between 1 and {_MOST_VCPUS}"),
        metavar="N",
        help="of the guest (those of the vector, 1)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only the quick rule: FILE is one measurement as long as the downtime-limit, "
        "a vector, or what query-dirty-rate, info dirty_rate or virsh domstats --dirtyrate said",
    )
    add_migration_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the advice."""
    precopy = precopy_of(args)
    bandwidth, limit = args.bandwidth, args.downtime
    if args.quick:
        if limit is None:
            raise UsageError("downtime: the quick rule needs a limit")
        text = read_text(args.vector)
        try:
            verdict = _quick(text, bandwidth, limit, unfinished=args.unfinished)
        except FormatError as error:
            raise with_name(args.vector, error) from error
        _print_quick(args, verdict)
        return 0
    from pysampler.prediction.advise import advise  # noqa: PLC0415 - scipy, slow

    vector = read_vector(args.vector, args.verb)
    try:
        advices = advise(
            vector,
            bandwidth,
            limit,
            precopy=precopy,
            vcpus=args.vcpus,
            unfinished=args.unfinished,
        )
    except FormatError as error:
        raise with_name(args.vector, error) from error
    if args.json:
        put(json.dumps(_json(bandwidth, limit, advices), indent=1))
    else:
        print_table(_table(bandwidth, limit, advices))
    return 0


def _quick(text: bytes, bandwidth: float, limit: float, *, unfinished: bool) -> QuickVerdict:
    from pysampler.prediction.advise import quick, quick_from_rate  # noqa: PLC0415

    found = measurements_in(text)
    for reply in found.replies:
        if reply is found.last:
            return quick_from_rate(*_qemu_reply(reply, unfinished=unfinished), bandwidth, limit)
    return quick(Measurement.from_dict(found.last), bandwidth, limit, unfinished=unfinished)


def _qemu_reply(reply: dict[str, Any], *, unfinished: bool) -> tuple[int, int]:
    """Return dirty-rate and calc-time in ms of a reply to query-dirty-rate."""
    status = reply.get("status", "measured")
    if status == "unstarted":
        raise FormatError("status: 'unstarted', not 'measured'; calc-dirty-rate starts one")
    if status != "measured" and not unfinished:
        raise FormatError(f"status: {printable(str(status)[:40])!r}, not 'measured'")
    rate, time = (_whole(key, reply.get(key)) for key in ("dirty-rate", "calc-time"))
    unit = str(reply.get("calc-time-unit", "second"))
    factor = {"second": 1000, "millisecond": 1}.get(unit)
    if factor is None:
        raise FormatError(f"calc-time-unit: {unit[:40]!r} is unknown")
    if not time:
        raise FormatError(
            "calc-time: 0, so it was shorter than a second; ask QEMU for it in milliseconds:"
            " query-dirty-rate with calc-time-unit millisecond (QEMU 8.2 and newer)"
        )
    return rate, time * factor


def _whole(key: str, value: object) -> int:
    if value is None:
        raise FormatError(f"{key}: missing")
    if key == "dirty-rate" and value == -1:
        raise FormatError("dirty-rate: '-1', so QEMU's measurement failed; start it again")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 50:
        raise FormatError(f"{key}: {str(value)[:40]!r} is not a whole number from 0")
    return value


def _print_quick(args: argparse.Namespace, verdict: QuickVerdict) -> None:
    if args.json:
        put(json.dumps(verdict.to_dict(), indent=1))
        return
    sure = "" if verdict.p_converge is None else f" ({format_probability(verdict.p_converge)})"
    put(verdict.reasoning + sure)


def _json(bandwidth: float, limit: float | None, advices: list[Advice]) -> dict[str, Any]:
    return {
        "bandwidth-bytes-per-s": bandwidth,
        "downtime-limit-ms": limit,
        "p-converge": advices[0].p_converge,
        "advice": [advice.to_dict() for advice in advices[1:]],
    }


def _table(bandwidth: float, limit: float | None, advices: list[Advice]) -> Table:
    table = Table(title=f"Migration at {format_rate(bandwidth)}, limit {format_limit(limit)}")
    table.add_column("remedy", no_wrap=True)
    table.add_column("converges", justify="right", no_wrap=True)
    table.add_column("because")
    for advice in advices:
        p = "-" if advice.p_converge is None else format_probability(advice.p_converge)
        remedy = "as it is" if advice.remedy == "none" else advice.remedy
        # A codec's name comes from the vector.
        table.add_row(printable(remedy), p, printable(advice.reasoning))
    return table
