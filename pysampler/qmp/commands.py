# SPDX-License-Identifier: MIT
"""The commands: one function each, and the table that says what arguments they take."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pysampler.qmp.dirty_rate import UNITS, DirtyRate
from pysampler.qmp.hmp import run_line
from pysampler.qmp.messages import VERSION, QmpError
from pysampler.qmp.schema import Argument
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from pysampler.qmp.interface import Guest

Arguments = dict[str, Any]  # checked


class Emit(Protocol):
    """Sends an event to every client."""

    def __call__(self, name: str, data: dict[str, Any] | None = None, /) -> None:
        """Send it; called from any thread."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """What the commands work on."""

    guest: Guest
    dirty_rate: DirtyRate
    emit: Emit
    shutdown: Callable[[str], None]  # sends SHUTDOWN with a reason, once


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Attributes:
        run: does it; what it returns is the reply's ``return``.
        arguments: what it takes.
        may_block: whether it must be kept out of the event loop.
    """

    run: Callable[[Monitor, Arguments], Any]
    arguments: tuple[Argument, ...] = ()
    may_block: bool = False


def _qmp_capabilities(_: Monitor, __: Arguments) -> Any:
    # Negotiation is the session's; whoever comes here has been through it.
    raise QmpError(
        "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
    )


def _query_version(_: Monitor, __: Arguments) -> Any:
    return VERSION


def _query_commands(_: Monitor, __: Arguments) -> Any:
    return [{"name": name} for name in COMMANDS]


def _query_status(monitor: Monitor, _: Arguments) -> Any:
    running = monitor.guest.running
    return {"status": "running" if running else "paused", "running": running}


def _stop(monitor: Monitor, _: Arguments) -> Any:
    if monitor.guest.running:
        monitor.guest.stop()
        monitor.emit("STOP")
    return {}


def _cont(monitor: Monitor, _: Arguments) -> Any:
    if not monitor.guest.running:
        monitor.guest.cont()
        monitor.emit("RESUME")
    return {}


def _query_cpus_fast(monitor: Monitor, _: Arguments) -> Any:
    return [
        {
            "thread-id": vcpu.thread_id,
            "props": {"core-id": vcpu.index, "thread-id": 0, "socket-id": 0},
            "qom-path": f"/machine/unattached/device[{vcpu.index}]",
            "cpu-index": vcpu.index,
            "target": platform.machine(),
        }
        for vcpu in monitor.guest.vcpus()
    ]


def _query_memory_size_summary(monitor: Monitor, _: Arguments) -> Any:
    return {"base-memory": monitor.guest.blocks[0].length, "plugged-memory": 0}


def _calc_dirty_rate(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.dirty_rate.start(
        arguments["calc-time"],
        arguments.get("calc-time-unit", "second"),
        arguments.get("sample-pages"),
        Mode(arguments.get("mode", "page-sampling")),
    )
    return {}


def _query_dirty_rate(monitor: Monitor, arguments: Arguments) -> Any:
    return monitor.dirty_rate.info(arguments.get("calc-time-unit", "second"))


def _set_vcpu_dirty_limit(_: Monitor, __: Arguments) -> Any:
    raise QmpError(
        "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'"
    )


def _human_monitor_command(monitor: Monitor, arguments: Arguments) -> Any:
    cpu_index = arguments.get("cpu-index", 0)
    if cpu_index not in {vcpu.index for vcpu in monitor.guest.vcpus()}:
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    return run_line(arguments["command-line"], monitor.dirty_rate)


def _quit(monitor: Monitor, _: Arguments) -> Any:
    monitor.shutdown("host-qmp-quit")
    monitor.guest.request_shutdown()
    return {}


def _x_query_workload(monitor: Monitor, _: Arguments) -> Any:
    return [
        {
            "cpu-index": vcpu.index,
            "thread-id": vcpu.thread_id,
            "workload": vcpu.workload,
            "writes": vcpu.writes,
            "writes-per-second": round(vcpu.writes_per_second),
        }
        for vcpu in monitor.guest.vcpus()
    ]


def _x_count_dirty_since(monitor: Monitor, arguments: Arguments) -> Any:
    pages = monitor.guest.count_dirty_since(arguments["monotonic-ns"])
    return {
        "blocks": [{"id": idstr, "pages": count} for idstr, count in pages.items()],
        "pages": sum(pages.values()),
    }


_CALC_TIME_UNIT = Argument("calc-time-unit", "string", optional=True, values=UNITS)

# In the order in which QEMU's query-commands lists those that it has.
COMMANDS: dict[str, Command] = {
    "x-count-dirty-since": Command(
        _x_count_dirty_since, (Argument("monotonic-ns", "integer"),), may_block=True
    ),
    "x-query-workload": Command(_x_query_workload),
    "human-monitor-command": Command(
        _human_monitor_command,
        (Argument("command-line", "string"), Argument("cpu-index", "integer", optional=True)),
    ),
    "cont": Command(_cont, may_block=True),
    "stop": Command(_stop, may_block=True),
    "query-memory-size-summary": Command(_query_memory_size_summary),
    "query-cpus-fast": Command(_query_cpus_fast),
    "quit": Command(_quit, may_block=True),
    "query-commands": Command(_query_commands),
    "query-version": Command(_query_version),
    "qmp_capabilities": Command(
        _qmp_capabilities, (Argument("enable", "array", optional=True, values=("oob",)),)
    ),
    "set-vcpu-dirty-limit": Command(
        _set_vcpu_dirty_limit,
        (Argument("cpu-index", "integer", optional=True), Argument("dirty-rate", "integer")),
    ),
    "query-dirty-rate": Command(_query_dirty_rate, (_CALC_TIME_UNIT,)),
    "calc-dirty-rate": Command(
        _calc_dirty_rate,
        (
            Argument("calc-time", "integer"),
            _CALC_TIME_UNIT,
            Argument("sample-pages", "integer", optional=True),
            Argument("mode", "string", optional=True, values=tuple(mode.value for mode in Mode)),
        ),
    ),
    "query-status": Command(_query_status),
}
