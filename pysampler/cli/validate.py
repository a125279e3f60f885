# SPDX-License-Identifier: MIT
"""``pysampler validate``: the published accuracy experiment, on this machine."""

from __future__ import annotations

import json
import os
from contextlib import closing
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pysampler.cli.signals import EndingSignals
from pysampler.cli.streams import put, say
from pysampler.cli.tables import print_table
from pysampler.cli.validation_arguments import add_arguments, experiment_of
from pysampler.cli.validation_tables import cell_table, run_table
from pysampler.errors import PysamplerError
from pysampler.host import machine
from pysampler.units import format_size
from pysampler.validation.experiment import refuse_what_does_not_fit
from pysampler.validation.experiment import run as run_experiment
from pysampler.validation.report import findings, make_folder, need_extras, write_report
from pysampler.validation.store import Store, default_path
from pysampler.validation.summary import cells, summaries
from pysampler.vector.interrupted import MeasurementInterruptedError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from pysampler.validation.experiment import Experiment
    from pysampler.validation.row import Row

__all__ = ["add_arguments", "run"]

_COMPARED_RUNS = 10


def run(args: argparse.Namespace) -> int:
    """Measure, store, print and report; or compare."""
    experiment = experiment_of(args)
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
    print_table(cell_table(cells(rows)))
    for sentence in findings(rows, summaries(rows)):
        put(sentence)


def _trouble_with(path: str) -> str:
    """Return the trouble with a store; nothing when it can be written."""
    try:
        Store(path).close()
    except PysamplerError as error:
        return str(error)
    return ""


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


def _compare(store: Store) -> int:
    runs = store.last(_COMPARED_RUNS)
    if not runs:
        raise PysamplerError("the store is empty; run `pysampler validate` first")
    print_table(run_table(runs))
    return 0
