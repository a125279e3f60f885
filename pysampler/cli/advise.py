# SPDX-License-Identifier: MIT
"""``pysampler advise``: what would make a migration of this guest converge."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pysampler.cli.predict import add_migration_arguments, precopy_of
from pysampler.cli.streams import put
from pysampler.cli.tables import print_table
from pysampler.cli.vector_input import read_text, with_name
from pysampler.errors import FormatError, UsageError
from pysampler.measurement import Measurement, parse_json
from pysampler.prediction.prediction import as_limit_ms, as_rate
from pysampler.prediction.table import format_limit, format_probability
from pysampler.printable import printable
from pysampler.units import format_rate

if TYPE_CHECKING:
    import argparse

    from pysampler.prediction.advise import Advice, QuickVerdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "vector", nargs="?", default="-", metavar="FILE", help="a vector; - or nothing: stdin"
    )
    parser.add_argument("--bandwidth", metavar="RATE", required=True, help="max-bandwidth: 10Gbps")
    parser.add_argument("--downtime", metavar="TIME", required=True, help="downtime-limit: 300ms")
    parser.add_argument(
        "--vcpus", type=int, metavar="N", help="of the guest (those of the vector, 1)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only the quick rule: FILE is one measurement as long as the downtime-limit, "
        "a vector or QEMU's reply to query-dirty-rate",
    )
    add_migration_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the advice."""
    precopy = precopy_of(args)
    bandwidth, limit = as_rate(args.bandwidth), as_limit_ms(args.downtime)
    if args.vcpus is not None and not 1 <= args.vcpus <= 8192:
        raise UsageError(f"vcpus: {args.vcpus} is not between 1 and 8192")
    text = read_text(args.vector)
    try:
        if args.quick:
            if limit is None:
                raise UsageError("downtime: the quick rule needs a limit")
            _print_quick(args, _quick(text, bandwidth, limit, unfinished=args.unfinished))
            return 0
        from pysampler.prediction.advise import advise  # noqa: PLC0415 - needs scipy

        advices = advise(
            Measurement.from_json(text),
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

    vector = parse_json(text)
    if isinstance(vector, dict) and "periods" not in vector and "calc-time" in vector:
        status = vector.get("status", "measured")
        if status != "measured" and not unfinished:
            raise FormatError(f"status: {str(status)[:40]!r}, not 'measured'")
        return quick_from_rate(*_qemu_reply(vector), bandwidth, limit)
    return quick(Measurement.from_dict(vector), bandwidth, limit, unfinished=unfinished)


def _qemu_reply(reply: dict[str, Any]) -> tuple[int, int]:
    """Return dirty-rate and calc-time in ms of a reply to query-dirty-rate."""
    for key in ("dirty-rate", "calc-time"):
        value = reply.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 50:
            raise FormatError(f"{key}: {str(value)[:40]!r} is not a whole number from 0")
    factor = {"second": 1000, "millisecond": 1}.get(str(reply.get("calc-time-unit", "second")))
    if factor is None:
        raise FormatError(f"calc-time-unit: {str(reply['calc-time-unit'])[:40]!r} is unknown")
    return reply["dirty-rate"], reply["calc-time"] * factor


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
