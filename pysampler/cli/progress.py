# SPDX-License-Identifier: MIT
"""Progress of a measurement on the terminal, and its summary."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pysampler.clock import MonotonicClock
from pysampler.units import MIB, format_duration, format_size
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType
    from typing_extensions import Self

    from pysampler.vector.measurement import Measurement

_REFRESH_NS = 100_000_000

# Drawing takes a few ms at most; a pass must not wait for it.
_QUIET_NS = 30_000_000

_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = "_.-:=+*#"


class ProgressDisplay(MonotonicClock):
    """A clock that draws the progress while it waits.

    There is no thread for drawing: it would compete with the passes for the interpreter.

    Args:
        console: the terminal.
        shown: False to draw nothing.
        check: called before each wait; may raise to end the measurement.
    """

    def __init__(
        self, console: Console, *, shown: bool, check: Callable[[], None] = lambda: None
    ) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True) if shown else None
        self._bars = _bars_of(console)
        self._check = check
        self._measurement: Measurement | None = None
        self._start_ns = 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        self._start_ns = self.now_ns()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    def show(self, measurement: Measurement) -> None:
        """Take the vector so far; it is drawn while waiting for the next pass."""
        self._measurement = measurement

    def wait_until(self, deadline_ns: int) -> None:
        """Draw now and then until shortly before the deadline, then sleep."""
        if self._live is not None:
            while deadline_ns - self.now_ns() > _REFRESH_NS + _QUIET_NS:
                with suppress(OSError):  # a terminal that hung up takes no measurement with it
                    self._live.update(self._picture(deadline_ns), refresh=True)
                self._check()
                super().wait_until(self.now_ns() + _REFRESH_NS)
        self._check()
        super().wait_until(deadline_ns)

    def _picture(self, deadline_ns: int) -> RenderableType:
        elapsed = (self.now_ns() - self._start_ns) / 1e9
        due = (deadline_ns - self._start_ns) / 1e9
        if self._measurement is None:
            return Text(f"{elapsed:5.1f} s  baseline taken, first period due at {due:.3g} s")
        total = self._measurement.calc_time_ms / 1000
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"{elapsed:5.1f} of {total:g} s",
            ProgressBar(total=total, completed=min(elapsed, total), width=40),
            f"{len(self._measurement.periods)} periods, the next at {due:.3g} s",
        )
        return Group(bar, Text(f"dirty {_curve(self._measurement, self._bars)}"))


def _bars_of(console: Console) -> str:
    return _ASCII_BARS if console.options.ascii_only else _BARS


def _curve(measurement: Measurement, heights: str) -> str:
    """Return the dirty pages of each period as a row of bars, and the last one as a volume."""
    dirty = measurement.n_dirty_pages
    top = max(*dirty, 1)
    bars = "".join(heights[min(count * len(heights) // top, len(heights) - 1)] for count in dirty)
    last = measurement.curve().dirty_pages[-1] * measurement.page_size
    share = dirty[-1] / measurement.n_sampled_pages
    return f"{bars} {format_size(last)} ({share:.1%}) after {measurement.periods[-1] / 1000:g} s"


_WATCHED = {
    Mode.PAGE_SAMPLING: "sampled",
    Mode.DIRTY_BITMAP: "tracked (dirty-bitmap)",
    Mode.DIRTY_RING: "tracked (dirty-ring)",
}


def print_summary(console: Console, measurement: Measurement) -> None:
    """Print the summary of a measurement."""
    curve = measurement.curve()
    size = measurement.page_size
    n_sampled = measurement.n_sampled_pages
    table = Table(box=None, pad_edge=False, show_header=False)
    memory = format_size(measurement.n_total_pages * size)
    is_complete = n_sampled == measurement.n_total_pages
    is_exact = is_complete and not any(measurement.unreadable)
    surety = "" if is_complete else "95 %: "
    pages = (
        f"all {n_sampled} pages"
        if is_complete
        else f"{n_sampled} of {measurement.n_total_pages} pages"
    )
    table.add_row("memory", f"{memory}, {pages} {_WATCHED[measurement.mode]}")
    zero = measurement.n_zero_pages / n_sampled
    table.add_row("zero pages", f"{zero:.1%}")
    table.add_row("dirty pages", _curve(measurement, _bars_of(console)))
    for which in sorted({0, len(measurement.periods) - 1}):
        low, high = (format_size(end[which] * size) for end in (curve.low, curve.high))
        table.add_row(
            f"  after {measurement.periods[which] / 1000:g} s",
            format_size(curve.dirty_pages[which] * size)
            + ("" if is_exact else f"  ({surety}{low} to {high})"),
        )
    seconds = measurement.duration_ms / 1000
    low, high = (end[-1] * size / MIB / seconds for end in (curve.low, curve.high))
    table.add_row(
        "dirty rate",
        f"{measurement.dirty_rate} MiB/s over {seconds:g} s"
        + ("" if is_exact else f"  ({surety}{low:.4g} to {high:.4g})"),
    )
    for vcpu, rate in measurement.vcpu_dirty_rate:
        table.add_row(f"  vCPU {vcpu}", f"{rate} MiB/s")
    slowest = max(measurement.details["passes-ns"]) / 1e9
    table.add_row("slowest pass", format_duration(slowest))
    console.print(table)
