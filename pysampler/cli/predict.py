# SPDX-License-Identifier: MIT
"""``pysampler predict``: what migrating this guest would take."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from pysampler.cli import prediction_tables
from pysampler.cli.arguments import several
from pysampler.cli.migration_arguments import add_migration_arguments, precopy_of
from pysampler.cli.picture import picture_file
from pysampler.cli.streams import put, say
from pysampler.cli.tables import print_table
from pysampler.cli.vector_input import opened, read_vector, with_name
from pysampler.errors import FormatError, PysamplerError, UsageError
from pysampler.prediction.evaluate import evaluate
from pysampler.prediction.plot import draw_prediction
from pysampler.prediction.precopy_model import Precopy
from pysampler.prediction.prediction import Model, as_limit_ms, as_rate, predict
from pysampler.prediction.records import read_migrations
from pysampler.printable import printable
from pysampler.units import format_duration, format_rate, format_size
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
    parser.add_argument(
        "--bandwidth",
        type=several(as_rate),
        metavar="RATE,...",
        help="max-bandwidth: 1Gbps,400MiB/s",
    )
    parser.add_argument(
        "--downtime",
        type=several(as_limit_ms),
        metavar="TIME,...",
        help="downtime-limit: 300ms,unlimited",
    )
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


def run(args: argparse.Namespace) -> int:
    """Predict and print; or evaluate the predictors."""
    precopy = precopy_of(args)
    if args.evaluate is not None:
        return _evaluate(args, precopy)
    if args.grid == "published" and (args.bandwidth or args.downtime):
        raise UsageError("--grid published has its own bandwidths and downtime-limits")
    name = "-" if args.vector is None else args.vector
    model: Model = args.model or ("published" if args.grid == "published" else "qemu")
    if model == "published" and replace(precopy, deadline_ms=Precopy.deadline_ms) != Precopy():
        say(args.verb, "the published model knows of bandwidth, downtime and deadline only")
    with picture_file(args.plot) as save:
        measurement = read_vector(name, args.verb)
        try:
            prediction = predict(
                measurement,
                args.bandwidth,
                args.downtime,
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
