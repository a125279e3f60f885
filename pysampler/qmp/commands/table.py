# SPDX-License-Identifier: MIT
"""The one table of commands, and that of the human monitor's lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.qmp.commands import (
    dirty_limit,
    dirty_rate,
    machine,
    migration,
    migration_lines,
    monitor,
    own,
)

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
    "query-vcpu-dirty-limit",
    "cancel-vcpu-dirty-limit",
    "set-vcpu-dirty-limit",
    "query-dirty-rate",
    "calc-dirty-rate",
    "migrate-pause",
    "migrate-recover",
    "migrate-incoming",
    "migrate",
    "migrate-continue",
    "migrate_cancel",
    "migrate-start-postcopy",
    "query-migrate-parameters",
    "migrate-set-parameters",
    "query-migrate-capabilities",
    "migrate-set-capabilities",
    "query-migrate",
    "query-status",
)
_COMMANDS = (
    own.COMMANDS
    | monitor.COMMANDS
    | machine.COMMANDS
    | dirty_rate.COMMANDS
    | dirty_limit.COMMANDS
    | migration.COMMANDS
)
_LINES = dirty_rate.LINES | dirty_limit.LINES | machine.LINES | migration_lines.LINES

COMMANDS: dict[str, Command] = dict(
    sorted(_COMMANDS.items(), key=lambda command: _ORDER.index(command[0]))
)
# In alphabetical order, as QEMU's help has them; those that inform stand last.
LINES: dict[str, Line] = dict(
    sorted(_LINES.items(), key=lambda line: (line[0].startswith("info "), line[0]))
)
