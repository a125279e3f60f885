# SPDX-License-Identifier: MIT
"""Commands about the monitor itself: negotiation, lists, the human monitor, the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pysampler.qmp.commands.definition import Command
from pysampler.qmp.hmp import may_block, run_line
from pysampler.qmp.schema import Array, Enum, Integer, Member, String
from pysampler.qmp.wire.messages import VERSION, QmpError

if TYPE_CHECKING:
    from pysampler.qmp.commands.definition import Arguments, Monitor


def _qmp_capabilities(_: Monitor, __: Arguments) -> Any:
    # Negotiation is the session's; whoever comes here has been through it.
    raise QmpError(
        "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
    )


def _query_version(_: Monitor, __: Arguments) -> Any:
    return VERSION


def _query_commands(monitor: Monitor, _: Arguments) -> Any:
    return [{"name": name} for name in monitor.commands]


def _human_monitor_command(monitor: Monitor, arguments: Arguments) -> Any:
    cpu_index = arguments.get("cpu-index", 0)
    if cpu_index not in {vcpu.index for vcpu in monitor.guest.vcpus()}:
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    return run_line(arguments["command-line"], monitor)


def _line_may_block(monitor: Monitor, arguments: Arguments) -> bool:
    return may_block(arguments["command-line"], monitor.lines)


def _quit(monitor: Monitor, _: Arguments) -> Any:
    monitor.shutdown("host-qmp-quit")
    monitor.guest.request_shutdown()
    return {}


COMMANDS = {
    "human-monitor-command": Command(
        _human_monitor_command,
        (Member("command-line", String()), Member("cpu-index", Integer(), optional=True)),
        may_block=_line_may_block,
    ),
    "quit": Command(_quit),
    "query-commands": Command(_query_commands),
    "query-version": Command(_query_version),
    "qmp_capabilities": Command(
        _qmp_capabilities, (Member("enable", Array(Enum(("oob",))), optional=True),)
    ),
}
