# SPDX-License-Identifier: MIT
"""``pysampler predict``: what migrating this guest would take."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from pysampler.cli import prediction_tables
from pysampler.cli.picture import picture_file
from pysampler.cli.streams import put, say
from pysampler.cli.tables import print_table
from pysampler.cli.vector_input import opened, read_vector, with_name
from pysampler.errors import FormatError, PysamplerError, UsageError
from pysampler.prediction.evaluate import evaluate
from pysampler.prediction.plot import draw_prediction
from pysampler.prediction.precopy_model import LIMITS, Precopy
from pysampler.prediction.prediction import Model, as_limit_ms, as_rate, predict
from pysampler.prediction.records import read_migrations
from pysampler.printable import printable
from pysampler.units import (
    format_duration,
    format_rate,
    format_size,
    parse_duration_ms,
    parse_exact_ms,
)
from pysampler.vector.measurement import MAX_JSON_BYTES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import BinaryIO

    from pysampler.prediction.evaluate import Score
    from pysampler.prediction.prediction import Prediction
    from pysampler.vector.measurement import Measurement

_ZERO_PAGE_US = 0.3  # of memory that QEMU has allocated before (docs/prediction.md)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "vector",
        nargs="?",
        metavar="FILE",
        help="a vector, or a session with one; - or nothing: stdin",
    )
    parser.add_argument(
        "--model",
        choices=("qemu", "published"),
        help="qemu runs QEMU's own loop (default); published is the recursion of the 2023 series",
    )
    parser.add_argument(
        "--grid",
        choices=("published",),
        help="print the published table; its Gbps are 2^30 bit/s, its model published by default",
    )
    parser.add_argument("--bandwidth", metavar="RATE,...", help="max-bandwidth: 1Gbps,400MiB/s")
    parser.add_argument("--downtime", metavar="TIME,...", help="downtime-limit: 300ms,unlimited")
    add_migration_arguments(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object; with --evaluate an array of scores",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw curve, times and one migration; .svg, .png or .pdf"
    )
    parser.add_argument(
        "--evaluate",
        metavar="MIGRATIONS",
        help="instead: score both models on real migrations, one JSON object a line, in a file or"
        " on stdin (-); each has its own deadline, limit-s, and the --link and --zero-page-cost"
        " that the others tell",
    )


def add_migration_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the migration, which `advise` takes as well."""
    parser.add_argument("--link", metavar="RATE", help="what the last pass gets (the bandwidth)")
    parser.add_argument(
        "--deadline",
        metavar="TIME",
        help="longer does not converge (60m)",
    )
    parser.add_argument("--multifd", action="store_true", help="pages travel in multifd packets")
    parser.add_argument(
        "--zero-page-detection",
        choices=("legacy", "multifd", "none"),
        help="how zero pages are found (legacy, or multifd with --multifd)",
    )
    parser.add_argument("--latency", metavar="TIME", default="0ms", help="round trip of the link")
    parser.add_argument(
        "--logging-cost",
        metavar="US",
        default="0",
        help="us that dirty logging costs the guest at a page's first write (0; KVM about 1.3)",
    )
    parser.add_argument(
        "--zero-page-cost",
        metavar="US",
        help="us that it costs the host to read a zero page (0; 0.1 to 5 were seen)",
    )
    parser.add_argument(
        "--unfinished", action="store_true", help="take a vector whose status is not measured"
    )


def precopy_of(args: argparse.Namespace) -> Precopy:
    """Return the settings of the migration; errors name the option."""
    deadline = "60m" if args.deadline is None else args.deadline
    deadline_ms = parse_duration_ms(deadline, "deadline")[0]
    latency_ms = parse_exact_ms(args.latency, "latency")
    return Precopy(
        link=None if args.link is None else as_rate(args.link, "link"),
        deadline_ms=_within("deadline_ms", deadline_ms, f"deadline: {deadline!r}"),
        multifd=args.multifd,
        zero_pages=args.zero_page_detection,
        latency_ms=_within("latency_ms", latency_ms, f"latency: {args.latency!r}"),
        logging_us=_microseconds(args.logging_cost, "logging_us", "logging-cost"),
        zero_page_us=None
        if args.zero_page_cost is None
        else _microseconds(args.zero_page_cost, "zero_page_us", "zero-page-cost"),
    )


def _microseconds(text: str, member: str, option: str) -> float:
    try:
        value = float(text.replace("_", " "))  # which Python, but nobody else, takes in a number
    except ValueError:
        raise UsageError(f"{option}: {text[:24]!r} is not a number of us") from None
    return _within(member, value, f"{option}: {text[:24]!r}")


def _within(member: str, value: float, what: str) -> float:
    low, high = LIMITS[member]
    if not low <= value <= high:
        unit = member.rpartition("_")[2]
        raise UsageError(f"{what} is not between {low:.0f} and {high:.0f} {unit}")
    return value


def run(args: argparse.Namespace) -> int:
    """Predict and print; or evaluate the predictors."""
    precopy = precopy_of(args)
    if args.evaluate is not None:
        return _evaluate(args, precopy)
    if args.grid == "published" and (args.bandwidth or args.downtime):
        raise UsageError("--grid published has its own bandwidths and downtime-limits")
    bandwidth = args.bandwidth and [as_rate(text) for text in args.bandwidth.split(",")]
    downtime = args.downtime and [as_limit_ms(text) for text in args.downtime.split(",")]
    name = "-" if args.vector is None else args.vector
    model: Model = args.model or ("published" if args.grid == "published" else "qemu")
    if model == "published" and replace(precopy, deadline_ms=Precopy.deadline_ms) != Precopy():
        say(args.verb, "the published model knows of bandwidth, downtime and deadline only")
    with picture_file(args.plot) as save:
        measurement = read_vector(name, args.verb)
        try:
            prediction = predict(
                measurement,
                bandwidth,
                downtime,
                model=model,
                precopy=precopy,
                unfinished=args.unfinished,
            )
            # Before the table: its curve may refuse what --model published takes.
            figure = save and draw_prediction(measurement, prediction, precopy)
        except FormatError as error:
            raise with_name(name, error) from error
        _print(args, prediction)
        if model == "qemu" and precopy.zero_page_us is None:
            _say_zero_pages(args.verb, measurement, prediction, precopy)
        if save and figure:
            save(figure)
    return 0


def _print(args: argparse.Namespace, prediction: Prediction) -> None:
    if prediction.fit:
        say(args.verb, f"curve: {prediction.fit}")
    if args.json:
        put(json.dumps(prediction.to_dict(), indent=1))
    elif prediction.model == "published" and args.bandwidth is None and args.downtime is None:
        say(args.verb, "published grid: 1 Gbps is 2^30 bit/s here")
        put(prediction_tables.published_table(prediction), end="")
    else:
        if args.bandwidth is None:
            say(args.verb, "bandwidths of the published grid, in 2^30 bit/s")
        print_table(prediction_tables.prediction_table(prediction))


def _say_zero_pages(
    verb: str, measurement: Measurement, prediction: Prediction, precopy: Precopy
) -> None:
    """Say that the host's time to read zero pages is left out, where it matters."""
    share = measurement.n_zero_pages / measurement.n_sampled_pages
    pages = share * measurement.n_total_pages
    on_wire = precopy.parameters(measurement.page_size)["zero_page_bytes"]
    added_ms = 0.0
    for cell in prediction.cells:
        # What is read while a page before it is sent costs nothing.
        ms = pages * (_ZERO_PAGE_US / 1000 - 1000 * on_wire / cell.bandwidth)
        if cell.total_ms is not None and ms > 0.05 * cell.total_ms:
            added_ms = max(added_ms, ms)
    if added_ms:
        say(
            verb,
            f"the time to read {format_size(pages * measurement.page_size)} of zero pages is not"
            f" in these totals; --zero-page-cost {_ZERO_PAGE_US} would add up to"
            f" {format_duration(added_ms / 1000)}",
        )


def _evaluate(args: argparse.Namespace, precopy: Precopy) -> int:
    if args.vector is not None:
        raise UsageError(f"--evaluate brings its own vectors; leave out {args.vector!r}")
    for name in ("model", "grid", "bandwidth", "downtime", "deadline", "plot"):
        if getattr(args, name) is not None:
            raise UsageError(f"--evaluate scores both models as the file says; not with --{name}")
    with opened(args.evaluate) as file:
        try:
            migrations = read_migrations(_lines(file))
            scores = evaluate(migrations, precopy=precopy, unfinished=args.unfinished)
        except PysamplerError as error:
            raise with_name(args.evaluate, error) from error
    say(args.verb, _host_of(scores))
    if args.json:
        put(json.dumps([score.to_dict() for score in scores], indent=1))
        return 0
    print_table(prediction_tables.score_table(scores))
    for score in scores:
        for line in prediction_tables.bad_cases(score):
            put(printable(f"bad, {score.model} with {score.vector}: {line}"))
    return 0


def _host_of(scores: list[Score]) -> str:
    """Return one line with the assumed figures of the host, medians over its migrations."""
    setups = [case.precopy for score in scores if score.model == "qemu" for case in score.cases]
    links = [setup.link for setup in setups if setup.link is not None]
    link = format_rate(float(f"{median(links):.3g}")) if links else "that of the bandwidth"
    us = median(setup.zero_page_us or 0.0 for setup in setups)
    return f"of the host: link {link}, zero page {us:.2g} us"


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines of bounded length."""
    while line := file.readline(MAX_JSON_BYTES + 1):
        yield line
