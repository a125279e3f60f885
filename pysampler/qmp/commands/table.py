# SPDX-License-Identifier: MIT
"""The one table of commands, and that of the human monitor's lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.qmp.commands import dirty_rate, machine, monitor, own

if TYPE_CHECKING:
    from pysampler.qmp.commands.definition import Command, Line

# Our own first, then the others in the order in which QEMU's query-commands lists them.
_ORDER = (
    "x-count-dirty-since",
    "x-query-workload",
    "human-monitor-command",
    "cont",
    "stop",
    "query-memory-size-summary",
    "query-cpus-fast",
    "quit",
    "query-commands",
    "query-version",
    "qmp_capabilities",
    "set-vcpu-dirty-limit",
    "query-dirty-rate",
    "calc-dirty-rate",
    "query-status",
)
_COMMANDS = own.COMMANDS | monitor.COMMANDS | machine.COMMANDS | dirty_rate.COMMANDS

COMMANDS: dict[str, Command] = dict(
    sorted(_COMMANDS.items(), key=lambda command: _ORDER.index(command[0]))
)
# In alphabetical order, as QEMU's help has them.
LINES: dict[str, Line] = dict(sorted((dirty_rate.LINES | machine.LINES).items()))
