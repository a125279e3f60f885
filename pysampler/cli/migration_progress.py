# SPDX-License-Identifier: MIT
"""Progress of a migration: drawn on a terminal, else a line now and then."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pysampler.cli.streams import say
from pysampler.printable import printable
from pysampler.units import MIB, format_duration, format_size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from typing_extensions import Self

    from pysampler.cli.migration_watch import Moment

_LEAST_S = 1.0  # between two lines
_MOST_S = 10.0  # without one
_SOON_S = 0.1


class MigrationProgress:
    """Shows how a migration goes, on stderr.

    Args:
        console: of stderr.
        verb: that lines begin with.
        downtime_limit_ms: its limit, from which the expected end comes.
    """

    def __init__(self, console: Console, verb: str, downtime_limit_ms: float) -> None:
        is_drawn = console.is_terminal
        self._live = Live(console=console, auto_refresh=False, transient=True) if is_drawn else None
        self._verb = verb
        self._limit_ms = downtime_limit_ms
        self._n_passes = 0
        self._said_s = -_LEAST_S

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    def show(self, now: Moment) -> None:
        """Draw a moment; without a terminal, say it if there is a new pass or it is time to."""
        if self._live is not None:
            with suppress(OSError):  # a terminal that hung up takes no migration with it
                self._live.update(self._picture(now), refresh=True)
        elif now.has_figures and self._is_due(now):
            self._n_passes, self._said_s = now.n_passes, now.elapsed_s
            say(self._verb, f"{now.elapsed_s:.1f} s: {self._line(now)}")

    def _is_due(self, now: Moment) -> bool:
        silent_s = now.elapsed_s - self._said_s
        is_new = now.n_passes != self._n_passes and now.rate > 0
        return silent_s >= _MOST_S or (is_new and silent_s >= _LEAST_S)

    def _line(self, now: Moment) -> str:
        return (
            f"pass {now.n_passes}, {format_size(now.remaining)} of {format_size(now.total)} remain,"
            f" {_rates(now)}{_throttle(now)}, {self._end(now)}"
        )

    def _end(self, now: Moment) -> str:
        left_s = now.left_s(self._limit_ms)
        if left_s is None:
            return "end not known yet"
        if math.isinf(left_s):
            return "no end in sight: more is dirtied than sent"
        if left_s < _SOON_S:
            return "about to end" if now.n_passes > 1 else "first pass about to end"
        # Of the first pass nobody knows yet what it will leave.
        about = "at least" if now.n_passes <= 1 else "about"
        return f"ends in {about} {format_duration(left_s)}"

    def _picture(self, now: Moment) -> RenderableType:
        if not now.has_figures:
            return Text(f"{now.elapsed_s:5.1f} s  {printable(now.status)}")
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"{now.elapsed_s:5.1f} s",
            ProgressBar(total=now.total, completed=max(0.0, now.total - now.remaining), width=40),
            f"pass {now.n_passes}, {format_size(now.remaining)} of {format_size(now.total)} remain",
        )
        return Group(bar, Text(f"{_rates(now)}{_throttle(now)}, {self._end(now)}"))


def _rates(now: Moment) -> str:
    return f"sending {now.rate / MIB:.4g} MiB/s, dirtied {now.dirty_rate / MIB:.4g} MiB/s"


def _throttle(now: Moment) -> str:
    return f", throttle {now.throttle:.0f} %" if now.throttle else ""
