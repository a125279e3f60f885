# SPDX-License-Identifier: MIT
"""``pysampler migrate``: migrate a guest, and say how it went."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pysampler.cli.arguments import checked, whole_number
from pysampler.cli.migration_arguments import deadline_ms
from pysampler.cli.migration_progress import MigrationProgress
from pysampler.cli.migration_record import check_file, record_of, write_record
from pysampler.cli.migration_settings import (
    capability,
    downtime_limit,
    max_bandwidth,
    parameter,
    typed,
)
from pysampler.cli.migration_summary import meanings, summary_table
from pysampler.cli.migration_watch import ENDED, Watch, figure
from pysampler.cli.progress import ProgressDisplay
from pysampler.cli.signals import EndingSignals
from pysampler.cli.source_arguments import PID_MAX
from pysampler.cli.streams import put, say
from pysampler.cli.tables import print_table
from pysampler.errors import PysamplerError, SourceError, UsageError
from pysampler.host.qmp_client import QmpClient, QmpError
from pysampler.measuring import make_observer
from pysampler.memory.source import find_ram
from pysampler.prediction.precopy_model import Precopy
from pysampler.qemu.migration import default_of
from pysampler.sampling.plan import PROFILES
from pysampler.sampling.sampler import Sampler, check_calc_time
from pysampler.units import format_duration, parse_duration_ms
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    import argparse

    from pysampler.units import CalcTimeUnit
    from pysampler.vector.measurement import Measurement

_ANSWER_S = 10.0  # for each reply of the source
_CANCEL_S = 10.0  # from migrate_cancel to the end
_POLL_S = 0.05

# The models of `predict` do not have them.
_NOT_PREDICTED = ("auto-converge", "dirty-limit", "x-aggression", "xbzrle", "postcopy-ram")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.description = (
        "Migrate the guest of a QEMU or of `pysampler guest` to a destination that waits for it, "
        "show how it goes, and say what came of it. Ctrl-C cancels the migration."
    )
    parser.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="QMP",
        help="the source's QMP socket: unix:PATH or tcp:HOST:PORT",
    )
    parser.add_argument(
        "--to",
        dest="uri",
        required=True,
        metavar="ADDRESS",
        help="where the destination waits, as `-incoming` and migrate-incoming have it: unix:PATH"
        " (as the source sees it) or tcp:HOST:PORT",
    )
    parser.add_argument(
        "--bandwidth",
        type=checked(max_bandwidth),
        metavar="RATE",
        help="max-bandwidth: 1Gbps, 400MiB/s (as the source has it)",
    )
    parser.add_argument(
        "--downtime",
        type=checked(downtime_limit),
        metavar="TIME",
        help="downtime-limit: 300ms, 2s (as the source has it)",
    )
    parser.add_argument(
        "--capability",
        type=checked(capability),
        action="append",
        default=[],
        metavar="NAME[=on|off]",
        help="a capability of the source, e.g. auto-converge; may be repeated",
    )
    parser.add_argument(
        "--parameter",
        type=checked(parameter),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the source, e.g. max-cpu-throttle=80; may be repeated",
    )
    parser.add_argument(
        "--deadline",
        type=checked(deadline_ms),
        metavar="TIME",
        default=Precopy.deadline_ms,
        help="cancel the migration after that (60m)",
    )
    parser.add_argument(
        "--measure",
        type=checked(_calc_time),
        metavar="TIME",
        help="sample the guest for that long just before, e.g. 10s, with profile fast",
    )
    parser.add_argument(
        "--pid",
        type=whole_number("pid", low=1, high=PID_MAX),
        metavar="PID",
        help="with --measure: the source's process (the one that serves its QMP socket)",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="with --measure: append a record of the migration, for `predict --evaluate FILE`",
    )


@dataclass(frozen=True)
class _Settings:
    """What the source is set to, and does.

    Attributes:
        parameters: as query-migrate-parameters has them.
        capabilities: those that are on.
        is_running: whether its guest runs.
    """

    parameters: dict[str, Any]
    capabilities: list[str]
    is_running: bool

    @property
    def bandwidth(self) -> float | None:
        return figure(self.parameters, "max-bandwidth")

    @property
    def downtime_limit_ms(self) -> float | None:
        return figure(self.parameters, "downtime-limit")


def run(args: argparse.Namespace) -> int:
    """Migrate; cancel on a signal."""
    _check(args)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False)
    with EndingSignals() as signals:
        with signals.interrupting():
            if args.output is not None:
                check_file(args.output)
            client = QmpClient(args.source, _ANSWER_S)
        with client:
            with signals.interrupting():
                settings = _set(client, args)
                vector = _measure(client, args, console, signals)
            # From here on a signal cancels: it must not interrupt a reply.
            with signals.leaving():
                try:
                    return _migrate(client, args, settings, vector, console, signals)
                except KeyboardInterrupt:
                    say(args.verb, "interrupted again: left; the migration may go on")
                    return 130


def _check(args: argparse.Namespace) -> None:
    names = [name for name, _ in args.parameter]
    for option, name in (("bandwidth", "max-bandwidth"), ("downtime", "downtime-limit")):
        if getattr(args, option) is not None and name in names:
            raise UsageError(f"--{option} and --parameter {name}: give one of them")
    if args.measure is None:
        if args.pid is not None:
            raise UsageError("--pid is used only with --measure")
        if args.output is not None:
            raise UsageError(
                "--output needs --measure, e.g. --measure 10s: a record holds the guest's vector"
            )
    if args.output == "":
        raise UsageError("--output: the name of the file is empty")


def _calc_time(text: str) -> tuple[int, CalcTimeUnit]:
    calc_time_ms, unit = parse_duration_ms(text, "measure")
    check_calc_time(calc_time_ms)
    return calc_time_ms, unit


def _set(client: QmpClient, args: argparse.Namespace) -> _Settings:
    """Set what is asked for; return how the source is set then."""
    if args.capability:
        wanted = [{"capability": name, "state": state} for name, state in args.capability]
        _execute(client, "migrate-set-capabilities", {"capabilities": wanted})
    reported = _object(client, "query-migrate-parameters")
    given = {name: typed(name, text, reported) for name, text in args.parameter}
    if args.bandwidth is not None:
        given["max-bandwidth"] = args.bandwidth
    if args.downtime is not None:
        given["downtime-limit"] = args.downtime
    if given:
        _execute(client, "migrate-set-parameters", given)
    capabilities = _execute(client, "query-migrate-capabilities")
    if not isinstance(capabilities, list):
        raise SourceError("the source does not answer query-migrate-capabilities as QEMU does")
    return _Settings(
        {**reported, **given},
        [
            one["capability"]
            for one in capabilities
            if isinstance(one, dict)
            and one.get("state") is True
            and isinstance(one.get("capability"), str)
        ],
        _object(client, "query-status").get("running") is not False,
    )


def _measure(
    client: QmpClient, args: argparse.Namespace, console: Console, signals: EndingSignals
) -> Measurement | None:
    if args.measure is None:
        return None
    pid = args.pid or client.peer_pid()
    if pid is None:
        raise UsageError(f"--measure: {args.source} does not tell its process; add --pid PID")
    found = find_ram(pid)
    for remark in found.remarks:
        say(args.verb, f"warning: {remark}")
    calc_time_ms, unit = args.measure
    say(args.verb, f"sampling process {pid} for {format_duration(calc_time_ms / 1000)}")
    observer = make_observer(found.blocks, Mode.PAGE_SAMPLING, profile=PROFILES["fast"])
    display = ProgressDisplay(console, shown=console.is_terminal, check=signals.check)
    with Sampler(observer, calc_time_ms, unit, display) as sampler, display:
        for so_far in sampler:
            display.show(so_far)
    return sampler.measurement


def _migrate(
    client: QmpClient,
    args: argparse.Namespace,
    settings: _Settings,
    vector: Measurement | None,
    console: Console,
    signals: EndingSignals,
) -> int:
    limit_ms = settings.downtime_limit_ms
    _execute(client, "migrate", {"uri": args.uri})
    watch = Watch(client)
    progress = MigrationProgress(
        console, args.verb, default_of("downtime-limit") if limit_ms is None else limit_ms
    )
    limit_s = args.deadline / 1000
    try:
        with progress:
            cancelled_for = _follow(client, watch, progress, signals, limit_s)
            if cancelled_for:
                _cancel(client, watch, cancelled_for)
    except SourceError as error:
        raise SourceError(f"{error}; the migration may go on") from error
    status = watch.now.status
    if status not in {"completed", "cancelled"}:
        reason = watch.now.error or "the source does not say why"
        raise PysamplerError(f"the migration is {status}: {reason}")
    try:
        print_table(summary_table(watch, settings.bandwidth, limit_ms))
        for line in meanings(watch, limit_ms, was_running=settings.is_running):
            put(line)
    finally:  # also where nobody reads stdout
        if vector is not None and args.output is not None:
            # Whoever cancelled it: it had not converged by then.
            _record(
                args,
                watch,
                vector,
                settings,
                limit_s if status == "completed" else watch.now.elapsed_s,
            )
    return _code(args, status, cancelled_for)


def _follow(
    client: QmpClient,
    watch: Watch,
    progress: MigrationProgress,
    signals: EndingSignals,
    limit_s: float,
) -> str:
    """Wait for the end; return why it is to be cancelled, empty when it has ended."""
    while (now := watch.look()).status not in ENDED:
        progress.show(now)
        if signals.received:
            return "interrupted"
        if now.elapsed_s >= limit_s:
            return f"it has not converged within {format_duration(limit_s)}"
        client.pause(_POLL_S)
    return ""


def _cancel(client: QmpClient, watch: Watch, reason: str) -> None:
    """Cancel, and wait for the end.

    Raises:
        PysamplerError: it cannot be cancelled.
    """
    try:
        client.execute("migrate_cancel")
    except QmpError as error:
        raise PysamplerError(f"{reason}, but the migration goes on: {error}") from error
    deadline = time.monotonic() + _CANCEL_S
    while watch.look().status not in ENDED:
        if time.monotonic() >= deadline:
            raise PysamplerError(
                f"{reason}: it was told to cancel, and is {watch.now.status} after {_CANCEL_S:g} s"
            )
        client.pause(_POLL_S)


def _record(
    args: argparse.Namespace,
    watch: Watch,
    vector: Measurement,
    settings: _Settings,
    limit_s: float,
) -> None:
    line = record_of(watch, vector, settings.parameters, settings.capabilities, args.uri, limit_s)
    write_record(args.output, line)
    for name in _NOT_PREDICTED:
        if name in settings.capabilities:
            say(args.verb, f"`predict --evaluate` takes this record for one without {name}")


def _code(args: argparse.Namespace, status: str, reason: str) -> int:
    """Say what else there is to say; return the exit code."""
    if status == "completed":
        if reason:
            say(args.verb, f"{reason}, but too late to cancel: the migration has completed")
        return 0
    say(args.verb, f"{reason or 'another client did it'}: the migration is cancelled")
    return 130 if reason == "interrupted" else 1


def _execute(client: QmpClient, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """Execute a command whose refusal is told with its name."""
    try:
        return client.execute(command, arguments)
    except QmpError as error:
        raise PysamplerError(f"the source refuses {command}: {error}") from error


def _object(client: QmpClient, command: str) -> dict[str, Any]:
    reply = _execute(client, command)
    if not isinstance(reply, dict):
        raise SourceError(f"the source does not answer {command} as QEMU does")
    return reply
