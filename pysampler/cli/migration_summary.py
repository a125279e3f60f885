# SPDX-License-Identifier: MIT
"""The summary of a migration that has ended: its figures, and what they mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from pysampler.cli.migration_watch import figure
from pysampler.printable import printable
from pysampler.units import MIB, format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pysampler.cli.migration_watch import Moment, Watch

_WORTH_SAYING = 0.01  # of the guest's memory, sent again


def summary_table(watch: Watch, bandwidth: float | None, downtime_limit_ms: float | None) -> Table:
    """Return the figures of a migration.

    Args:
        watch: what was seen of it.
        bandwidth: max-bandwidth, bytes a second; 0 is unlimited, None not known.
        downtime_limit_ms: None where it is not known.
    """
    now = watch.now
    seen = now if now.has_figures or watch.figures is None else watch.figures
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("status", printable(now.status))
    setup_ms, total_ms = (figure(seen.reply, key) for key in ("setup-time", "total-time"))
    setup = "" if setup_ms is None else f", {_ms(setup_ms)} of it to set up"
    table.add_row("total time", _ms(total_ms) + setup)
    limit = "" if downtime_limit_ms is None else f" (limit {_ms(downtime_limit_ms)})"
    downtime_ms = figure(seen.reply, "downtime")
    table.add_row("downtime", "-" if downtime_ms is None else _ms(downtime_ms) + limit)
    table.add_row("passes", f"{seen.n_passes}")
    ram = seen.reply.get("ram")
    whole, zero = (figure(ram, key) or 0 for key in ("normal", "duplicate"))
    pages = f"{whole:.0f} whole pages, {zero:.0f} zero pages"
    table.add_row("transferred", f"{format_size(seen.transferred)} ({pages})")
    table.add_row("guest memory", format_size(seen.total))
    if not _has_completed(now):
        table.add_row("  remaining", format_size(seen.remaining))
    table.add_row("rate", _mean_rate(seen, total_ms, setup_ms) + _at_most(bandwidth))
    most = f"up to {watch.most_throttle:.0f} %" if watch.most_throttle else "none"
    table.add_row("throttle", most)
    return table


def meanings(watch: Watch, downtime_limit_ms: float | None, *, was_running: bool) -> Iterator[str]:
    """Yield what the figures mean, a sentence or two each.

    Args:
        watch: what was seen of the migration.
        downtime_limit_ms: None where it is not known.
        was_running: whether the guest ran when it began.
    """
    now = watch.now
    if not _has_completed(now):
        yield "The guest goes on at the source, as before."
        if watch.figures is not None:
            yield from _why_not(watch.figures)
        return
    yield "The guest is at the destination; the source keeps a stopped copy, which may be ended."
    downtime_ms = figure(now.reply, "downtime")
    if not was_running:
        yield "It was stopped before, so nothing of its work had to wait."
    elif downtime_ms is not None and downtime_limit_ms is not None:
        if downtime_ms <= downtime_limit_ms:
            yield f"It stood still for {_ms(downtime_ms)}, which is within the downtime-limit."
        else:
            yield (
                f"It stood still for {_ms(downtime_ms)}. That is longer than the downtime-limit of"
                f" {_ms(downtime_limit_ms)}, for which the source can only plan."
            )
    again = _sent_again(now)
    if again > _WORTH_SAYING * now.total:
        yield (
            f"{format_size(again)} were sent again, because the guest wrote them meanwhile: that is"
            f" {again / now.total:.0%} of its memory."
        )
    if watch.most_throttle:
        yield (
            f"Its vCPUs were held for up to {watch.most_throttle:.0f} % of their time. More"
            " bandwidth or a longer downtime-limit would spare it that; `pysampler advise` says how"
            " much."
        )


def _why_not(seen: Moment) -> Iterator[str]:
    if seen.dirty_rate < seen.rate or not seen.rate:
        return
    yield (
        f"It dirtied {_rate(seen.dirty_rate)} while {_rate(seen.rate)} were sent."
        " More bandwidth, a longer downtime-limit or the capability auto-converge would help;"
        " `pysampler advise` says how much."
    )


def _has_completed(now: Moment) -> bool:
    return now.status == "completed"


def _sent_again(now: Moment) -> float:
    ram = now.reply.get("ram")
    page_size = figure(ram, "page-size") or 0.0
    pages = sum(figure(ram, key) or 0.0 for key in ("normal", "duplicate"))
    return pages * page_size - now.total


def _mean_rate(seen: Moment, total_ms: float | None, setup_ms: float | None) -> str:
    sending_ms = (total_ms or 0.0) - (setup_ms or 0.0)
    if sending_ms <= 0:
        return "-"
    return f"{_rate(1000 * seen.transferred / sending_ms)} on average"


def _at_most(bandwidth: float | None) -> str:
    if bandwidth is None:
        return ""
    return f" (max-bandwidth {_rate(bandwidth) if bandwidth else 'unlimited'})"


def _rate(bytes_per_s: float) -> str:
    """Return a rate in the one unit of all of them, as they are compared."""
    return f"{bytes_per_s / MIB:.4g} MiB/s"


def _ms(ms: float | None) -> str:
    if not ms:
        return "-" if ms is None else "0 ms"
    return format_duration(ms / 1000)
