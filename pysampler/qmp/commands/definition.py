# SPDX-License-Identifier: MIT
"""What a command and a line of the human monitor are, and what they work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pysampler.qmp.dirty_rate_state import DirtyRate
    from pysampler.qmp.interface import Guest
    from pysampler.qmp.schema import Member

Arguments = dict[str, Any]  # checked


class Emit(Protocol):
    """Sends an event to every client."""

    def __call__(self, name: str, data: dict[str, Any] | None = None, /) -> None:
        """Send it; called from any thread."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """What the commands work on.

    Attributes:
        commands: all there are, by name.
        lines: all lines of the human monitor, by name.
        shutdown: sends SHUTDOWN with a reason, once.
    """

    guest: Guest
    dirty_rate: DirtyRate
    emit: Emit
    shutdown: Callable[[str], None]
    commands: Mapping[str, Command]
    lines: Mapping[str, Line]


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Attributes:
        run: does it; what it returns is the reply's ``return``.
        arguments: what it takes.
        may_block: whether it must be kept out of the event loop.
        allow_oob: whether it may be asked for out of band, to be done while another one blocks. It
            must not block itself.
    """

    run: Callable[[Monitor, Arguments], Any]
    arguments: tuple[Member, ...] = ()
    may_block: bool = False
    allow_oob: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the human monitor. It must not block.

    Attributes:
        run: is given the words after the name; returns what is printed.
        help: what ``help`` prints.
    """

    run: Callable[[Monitor, list[str]], str]
    help: str
