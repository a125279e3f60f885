# SPDX-License-Identifier: MIT
"""``pysampler validate``: the published accuracy experiment, on this machine."""

from __future__ import annotations

import json
import os
import secrets
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pysampler.cli.arguments import checked, whole_number
from pysampler.cli.signals import EndingSignals
from pysampler.cli.streams import put, say
from pysampler.cli.tables import print_table
from pysampler.errors import PysamplerError, UsageError
from pysampler.host import machine
from pysampler.printable import printable
from pysampler.qemu.dirty_rate import (
    CALC_TIME_MAX_MS,
    CALC_TIME_MIN_MS,
    SAMPLE_PAGES_MAX,
    SAMPLE_PAGES_MIN,
)
from pysampler.sampling.plan import PROFILES
from pysampler.units import MIB, format_size, parse_duration_ms, parse_size
from pysampler.validation.experiment import (
    CALC_TIMES_MS,
    Experiment,
    refuse_what_does_not_fit,
)
from pysampler.validation.experiment import (
    run as run_experiment,
)
from pysampler.validation.report import findings, make_folder, need_extras, write_report
from pysampler.validation.row import DIRTY_BITMAP
from pysampler.validation.store import Store, default_path
from pysampler.validation.summary import cells, summaries
from pysampler.validation.workload import WORKLOADS
from pysampler.vector.interrupted import MeasurementInterruptedError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pysampler.validation.row import Row
    from pysampler.validation.stored_runs import Run
    from pysampler.validation.summary import ValidationCell

_SIZE_MIN = 64 * MIB
_COMPARED_RUNS = 10


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


def run(args: argparse.Namespace) -> int:
    """Measure, store, print and report; or compare."""
    experiment = _experiment(args)
    path = args.store or default_path()
    if args.output and not args.compare:
        need_extras()
    if args.compare:
        if not os.path.exists(path):
            raise PysamplerError(f"there is no store {path}; run `pysampler validate` first")
        with closing(Store(path, change=False)) as store:
            return _compare(store)
    refuse_what_does_not_fit(experiment.sizes)
    if args.output:
        make_folder(args.output)
    # A store that does not work is told before a minute of measuring; the rows are printed anyway.
    trouble = _trouble_with(path)
    if trouble:
        say(args.verb, f"warning: {trouble}; the rows will be printed")
    # Whatever ends this leaves no guest behind that writes for ever, and takes no measured row.
    with EndingSignals() as signals:
        rows, failure = _measure(experiment, signals)
        return _deliver(args, rows, failure, path, trouble)


def _deliver(
    args: argparse.Namespace,
    rows: Sequence[Row],
    failure: PysamplerError | None,
    path: str,
    trouble: str,
) -> int:
    """Print the rows, report them and store them; a failure of one does not stop the others.

    Args:
        args: of the command line.
        rows: what was measured.
        failure: the error that ended the measurement early.
        path: of the store.
        trouble: the warning about the store that was already given.
    """
    facts = machine.facts()

    def show() -> None:
        _print(rows, as_json=args.json)

    def report() -> None:
        if args.output:
            write_report(args.output, rows, facts)
            say(args.verb, f"report: {os.path.join(args.output, 'index.html')}")

    def keep() -> None:
        with closing(Store(path)) as store:
            number = store.append(rows, facts)
        say(args.verb, f"stored as run {number}; --compare shows it beside the others")

    code = 0
    unforeseen: Exception | None = None
    for step in (show, report, keep):
        try:
            step()
        except PysamplerError as error:  # noqa: PERF203 - three times
            code = 1
            if str(error) != trouble:
                say(args.verb, str(error))
        except Exception as error:  # noqa: BLE001 - a gone reader of stdout, too; raised below
            unforeseen = error
    if failure is not None:
        raise failure
    if unforeseen is not None:
        raise unforeseen
    return code


def _print(rows: Sequence[Row], *, as_json: bool) -> None:
    if as_json:
        for row in rows:
            put(json.dumps(row.to_dict()))
        return
    print_table(_cell_table(cells(rows)))
    for sentence in findings(rows, summaries(rows)):
        put(sentence)


def _trouble_with(path: str) -> str:
    """Return the trouble with a store; nothing when it can be written."""
    try:
        Store(path).close()
    except PysamplerError as error:
        return str(error)
    return ""


def _experiment(args: argparse.Namespace) -> Experiment:
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


def _measure(
    experiment: Experiment, signals: EndingSignals
) -> tuple[list[Row], PysamplerError | None]:
    """Return the rows that could be measured, at least one, and the error that ended it early."""
    console = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Drawn between measurements only: a thread that draws would disturb them.
        auto_refresh=False,
        disable=not console.is_terminal,
    )
    skipped: list[str] = []
    failure: PysamplerError | None = None
    measuring = closing(run_experiment(experiment, skipped.append))
    try:
        with signals.interrupting(), measuring as measured, progress:
            task = progress.add_task("measuring", total=experiment.n_rows)
            progress.refresh()
            for row in measured:
                rows.append(row)
                signals.check()
                where = f"{format_size(row.size)} {row.calc_time_ms} ms {row.method}"
                progress.update(task, advance=1, description=f"{where:>28}", refresh=True)
    except (KeyboardInterrupt, PysamplerError) as error:
        if not rows:
            raise
        left = f"{len(rows)} of {experiment.n_rows} rows were measured"
        failure = MeasurementInterruptedError(f"{str(error) or 'interrupted'}; {left}", None)
    for line in skipped:
        say("validate", f"warning: {line}")
    if not rows:
        raise PysamplerError("nothing could be measured")
    return rows, failure


def _cell_table(found: Sequence[ValidationCell]) -> Table:
    table = Table(
        title=f"MiB/s of a {found[0].rows[0].workload} writer",
        caption="theory: at the writes counted in each measurement; sd: expected standard deviation"
        " of measured; truth: what the guest itself knows",
    )
    for title in ("size", "ms", "method"):
        table.add_column(title)
    columns = ("M writes/s", "theory", "measured", "diff", "sd", "z", "truth", "diff", "published")
    for title in columns:
        table.add_column(title, justify="right")
    before = None
    for cell in found:
        if before is not None and before != cell.size:
            table.add_section()
        before = cell.size
        figures = cell.published
        table.add_row(
            format_size(cell.size),
            str(cell.calc_time_ms),
            cell.method,
            f"{cell.wps / 1e6:.3f}",
            f"{cell.theory:.0f}",
            f"{cell.measured:.0f}",
            f"{cell.deviation:+.2%}",
            "-" if cell.method == DIRTY_BITMAP else f"{cell.sd:.1f}",
            "-" if cell.method == DIRTY_BITMAP else f"{cell.z:+.1f}",
            f"{cell.truth:.0f}",
            f"{cell.truth_deviation:+.2%}",
            ""
            if figures is None
            else str(figures.dirty_bitmap if cell.method == DIRTY_BITMAP else figures.page_sampling)
            + f" of {figures.theory}",
        )
    return table


def _compare(store: Store) -> int:
    runs = store.last(_COMPARED_RUNS)
    if not runs:
        raise PysamplerError("the store is empty; run `pysampler validate` first")
    table = Table(title="Deviation from theory at the counted rate, by run")
    for title in ("run", "when (UTC)", "machine", "workload", "method", "size"):
        table.add_column(title)
    for title in ("rows", "M writes/s", "mean |dev|", "worst", "chi-square", "p", "slowed"):
        table.add_column(title, justify="right")
    for stored in runs:
        for line in _compared(stored):
            table.add_row(*map(printable, line))
        table.add_section()
    print_table(table)
    return 0


def _compared(stored: Run) -> list[list[str]]:
    facts: dict[str, Any] = stored.machine
    when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(stored.started))
    lines = []
    for summary in summaries(stored.rows):
        judgement = summary.judgement
        of_one = [
            row for row in stored.rows if row.method == summary.method and row.size == summary.size
        ]
        lines.append(
            [
                str(stored.number),
                when,
                f"{facts.get('cpu')}, {facts.get('kernel')}",
                stored.rows[0].workload,
                summary.method,
                format_size(summary.size),
                str(judgement.n_rows),
                f"{sum(row.wps for row in of_one) / len(of_one) / 1e6:.3f}",
                f"{judgement.mean_deviation:.2%}",
                f"{judgement.worst_deviation:.2%}",
                f"{judgement.chi_square:.1f}/{judgement.n_judged}" if judgement.n_judged else "-",
                f"{judgement.p_value:.2g}" if judgement.n_judged else "-",
                f"{summary.slowed:.1%}",
            ]
        )
    return lines
