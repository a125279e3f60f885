# SPDX-License-Identifier: MIT
"""The definitions of a command, of a line of the human monitor, and of their monitor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pysampler.qmp.dirty_rate_state import DirtyRate
    from pysampler.qmp.interface import Emit, ServedGuest, ServedMigration
    from pysampler.qmp.schema import Member

Arguments = dict[str, Any]  # checked


@dataclass(frozen=True, slots=True)
class Monitor:
    """The objects that commands work on.

    Attributes:
        commands: all commands, by name.
        lines: all lines of the human monitor, by name.
        shutdown: sends SHUTDOWN with a reason, once.
    """

    guest: ServedGuest
    dirty_rate: DirtyRate
    migration: ServedMigration
    emit: Emit
    shutdown: Callable[[str], None]
    commands: Mapping[str, Command]
    lines: Mapping[str, Line]


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Attributes:
        run: runs the command; its result is the reply's ``return``.
        arguments: the types of its arguments.
        may_block: whether it must be kept out of the event loop; for a command that runs others,
            a function that tells whether it must be this time.
        allow_oob: whether it may be asked for out of band, to be done while another one blocks. It
            must not block itself.
    """

    run: Callable[[Monitor, Arguments], Any]
    arguments: tuple[Member, ...] = ()
    may_block: bool | Callable[[Monitor, Arguments], bool] = False
    allow_oob: bool = False

    def blocks(self, monitor: Monitor, arguments: Arguments) -> bool:
        """Return whether it must be kept out of the event loop, with these arguments."""
        if isinstance(self.may_block, bool):
            return self.may_block
        return self.may_block(monitor, arguments)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the human monitor.

    Attributes:
        run: takes the words after the name; returns the text to print.
        help: the text that ``help`` prints.
        may_block: whether it must be kept out of the event loop.
    """

    run: Callable[[Monitor, list[str]], str]
    help: str
    may_block: bool = False
