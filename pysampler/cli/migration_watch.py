# SPDX-License-Identifier: MIT
"""A migration that runs, as its source's query-migrate tells of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pysampler.errors import SourceError
from pysampler.qemu.dirty_rate import PAGE_SIZE

if TYPE_CHECKING:
    from pysampler.host.qmp_client import QmpClient

ENDED = frozenset({"completed", "failed", "cancelled", "postcopy-paused"})
_TRACE_MAX = 10_000  # passes; more do not fit into a record


def figure(table: object, key: str) -> float | None:
    """Return a number that a server says, None where it says none that can be one."""
    value = table.get(key) if isinstance(table, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value < 1e30 else None


@dataclass(frozen=True, slots=True)
class Moment:
    """What query-migrate said at one moment. Figures it did not say are 0.

    Attributes:
        elapsed_s: since the migration was asked for.
        status: QEMU's word.
        error: why it failed; empty where nothing is said.
        n_passes: dirty-sync-count.
        total: bytes of guest RAM.
        remaining: bytes that are known to be dirty.
        transferred: bytes of the stream so far.
        rate: bytes of guest RAM that were dealt with a second, zero pages included.
        dirty_rate: bytes a second that the guest dirtied.
        throttle: percent of their time that vCPUs are held.
        reply: all that was said.
    """

    elapsed_s: float
    status: str
    error: str
    n_passes: int
    total: float
    remaining: float
    transferred: float
    rate: float
    dirty_rate: float
    throttle: float
    reply: dict[str, Any] = field(repr=False)

    @property
    def has_figures(self) -> bool:
        """Whether there are figures of RAM: not at its very start, nor after a failure."""
        return self.total > 0

    def left_s(self, downtime_limit_ms: float) -> float | None:
        """Return the time to its end if all goes on as now.

        Each pass leaves dirty_rate / rate of what the pass before it left, until the rest can be
        sent within the downtime-limit.

        Returns:
            Seconds, infinite where more is dirtied than sent; None where there is no rate yet.
        """
        if not self.rate:
            return None
        if self.dirty_rate >= self.rate:
            return math.inf
        rest = self.remaining - self.rate * downtime_limit_ms / 1000
        return max(0.0, rest) / (self.rate - self.dirty_rate)


def moment_of(reply: object, elapsed_s: float) -> Moment:
    """Return what a reply of query-migrate says.

    Raises:
        SourceError: it is none.
    """
    if not isinstance(reply, dict):
        raise SourceError("the source does not answer query-migrate as QEMU does")
    ram, status, error = reply.get("ram"), reply.get("status"), reply.get("error-desc")
    page_size = figure(ram, "page-size") or PAGE_SIZE
    by_page = (figure(ram, "pages-per-second") or 0.0) * page_size
    by_bit = (figure(ram, "mbps") or 0.0) * 1e6 / 8
    return Moment(
        elapsed_s=elapsed_s,
        status=status if isinstance(status, str) else "none",
        error=error if isinstance(error, str) else "",
        n_passes=int(figure(ram, "dirty-sync-count") or 0),
        total=figure(ram, "total") or 0.0,
        remaining=figure(ram, "remaining") or 0.0,
        transferred=figure(ram, "transferred") or 0.0,
        rate=by_page or by_bit,
        dirty_rate=(figure(ram, "dirty-pages-rate") or 0.0) * page_size,
        throttle=figure(reply, "cpu-throttle-percentage") or 0.0,
        reply=reply,
    )


class Watch:
    """Asks how a migration goes, and keeps what a record and a summary need.

    Args:
        client: of its source.

    Attributes:
        now: the last moment.
        figures: the last moment that had figures; None before the first.
        most_throttle: the highest throttle seen, in percent.
        trace: for each pass that was seen: ms, dirty-sync-count, remaining, transferred,
            dirty-pages-rate, mbps.
    """

    def __init__(self, client: QmpClient) -> None:
        self._client = client
        self._began = time.monotonic()
        self.now = moment_of({}, 0.0)
        self.figures: Moment | None = None
        self.most_throttle = 0.0
        self.trace: list[list[float]] = []

    def look(self) -> Moment:
        """Ask once.

        Raises:
            SourceError: the source does not answer, or not as QEMU does.
        """
        reply = self._client.execute("query-migrate")
        self.now = moment_of(reply, time.monotonic() - self._began)
        if self.now.has_figures:
            if self.figures is None or self.now.n_passes != self.figures.n_passes:
                self._note_pass()
            self.figures = self.now
            self.most_throttle = max(self.most_throttle, self.now.throttle)
        return self.now

    def _note_pass(self) -> None:
        if len(self.trace) < _TRACE_MAX:
            keys = ("dirty-sync-count", "remaining", "transferred", "dirty-pages-rate", "mbps")
            ram = self.now.reply["ram"]
            figures = [figure(ram, key) or 0 for key in keys]
            self.trace.append([round(self.now.elapsed_s * 1000), *(round(f, 1) for f in figures)])
