# SPDX-License-Identifier: MIT
"""The source's end of a migration: from the connection to the moment when another guest runs."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pysampler.core import PageReceiver, PageSender, SentBlock
from pysampler.errors import PysamplerError, SourceError, StateError
from pysampler.guest import snapshot
from pysampler.guest.run_state import RunState
from pysampler.migration.channel import connect
from pysampler.migration.clock import WakeableClock
from pysampler.migration.convergence import NoControl, choose_control
from pysampler.migration.info import MigrationInfo, RamInfo
from pysampler.migration.precopy import Precopy, all_dirty
from pysampler.migration.status import RUNNING, MigrationStatus, StatusCell
from pysampler.migration.stream import (
    Ack,
    End,
    Start,
    State,
    decode,
    encode,
    return_limits,
)
from pysampler.qemu.dirty_rate import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pysampler.guest.guest import Guest
    from pysampler.guest.shared_log import BitmapUser
    from pysampler.migration.address import Address
    from pysampler.migration.convergence import Control
    from pysampler.migration.dirty_limit import DirtyLimits
    from pysampler.migration.settings import Settings

    Emit = Callable[..., None]

# How long the end of a thread takes whose migration is over, but for a vCPU that is held.
_END_S = 0.5
_POLL_MS = 50  # between two looks whether the migration was cancelled
_Status = MigrationStatus
_GOING_ON = RUNNING - {_Status.CANCELLING}


class _EndedError(Exception):
    """The migration was cancelled, or has failed already."""


@dataclass
class _Counts:
    """What query-migrate tells, in ms and bytes.

    Attributes:
        begin_ms: when `Outgoing.start` was called.
        setup_ms: from the thread's start to the first iteration.
        total_ms: of the whole, once it is over.
        stopped_ms: when the vCPUs were stopped; None before.
        downtime_ms: once it is over.
        downtime_bytes: bytes of RAM sent while the vCPUs stood.
    """

    begin_ms: int
    setup_ms: int = 0
    total_ms: int | None = None
    stopped_ms: int | None = None
    downtime_ms: int | None = None
    downtime_bytes: int = 0
    error: str = ""


class Outgoing:
    """A migration to another guest. A thread of its own does it.

    Args:
        guest: the guest.
        settings: parameters and capabilities.
        address: of the destination.
        limits: of the vCPUs' dirty rates, for the capability dirty-limit.
        link_speed: bytes/s that the link carries; 0: whatever the socket takes.
        emit: takes the events STOP and RESUME, and MIGRATION and MIGRATION_PASS.
    """

    def __init__(
        self,
        guest: Guest,
        settings: Settings,
        address: Address,
        limits: DirtyLimits,
        link_speed: int,
        emit: Emit,
    ) -> None:
        self._guest = guest
        self._settings = settings
        self._address = address
        self._limits = limits
        self._link_speed = link_speed
        self._emit = emit
        self._clock = WakeableClock()
        self._stop = threading.Event()  # ends connecting
        self._proceed = threading.Event()  # ends the pause before the switchover
        self._lock = threading.Lock()  # guards the socket, and the decision that it is over
        self._socket: socket.socket | None = None
        self._sender: PageSender | None = None
        self._precopy: Precopy | None = None
        self._control: Control = NoControl()
        self._counts = _Counts(_now_ms())
        self._closing = False
        self._before: RunState | None = None  # the guest's state when it was stopped for the rest
        self._thread = threading.Thread(target=self._run, name="migration", daemon=True)
        self._status = StatusCell(self._status_changed)

    @property
    def status(self) -> MigrationStatus:
        """How far it is."""
        return self._status.value

    @property
    def is_running(self) -> bool:
        """Whether it is under way."""
        return self.status in RUNNING

    def has_ended(self) -> bool:
        """Return whether its thread has ended, or does in a moment: the guest is free then."""
        self._thread.join(_END_S)
        return not self._thread.is_alive()

    def start(self) -> None:
        """Begin; what goes wrong from now on is found in `info`."""
        self._status.change(_Status.SETUP)
        self._thread.start()

    def cancel(self) -> None:
        """Cancel it, if it is under way; return at once."""
        with self._lock:
            if not self._status.change(_Status.CANCELLING):
                return
            if self._socket is None:  # it still connects, and has changed nothing
                self._status.change(_Status.CANCELLED)
            self._wake()

    def proceed(self) -> None:
        """Go on from the pause before the switchover."""
        self._proceed.set()

    def close(self, timeout_s: float) -> bool:
        """End it as the process ends; return whether its thread has ended."""
        self._closing = True
        with self._lock:
            self._fail("the guest ends")
            self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def info(self) -> MigrationInfo:
        """Return what query-migrate tells."""
        status, counts = self.status, self._counts
        if status is _Status.SETUP:
            return MigrationInfo(status=status.value)
        if status in (_Status.FAILED, _Status.CANCELLED) or self._precopy is None:
            return MigrationInfo(status=status.value, error_desc=counts.error or None)
        total_ms = counts.total_ms
        members: dict[str, Any] = {
            "status": status.value,
            "setup_time": counts.setup_ms,
            "total_time": _now_ms() - counts.begin_ms if total_ms is None else total_ms,
            "ram": self._ram_info(),
        }
        if status is _Status.COMPLETED:
            members["downtime"] = counts.downtime_ms
        else:
            members["expected_downtime"] = self._precopy.expected_downtime_ms
            members |= self._control.members()
        return MigrationInfo(**members)

    # ---- the thread ----

    def _run(self) -> None:
        try:
            self._migrate()
        except _EndedError:
            pass
        except OSError as error:
            self._fail(f"Unable to write to socket: {os.strerror(error.errno or 0)}")
        except PysamplerError as error:
            self._fail(str(error))
        except Exception as error:  # a fault of ours must not leave the guest stopped
            self._fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._finish()

    def _migrate(self) -> None:
        begin_ms = _now_ms()
        # Before it connects: a destination that is left has had its chance.
        log = self._guest.shared_log.bitmap()
        try:
            connection = connect(self._address, self._stop)
            with self._lock:
                if not self._is_active():
                    connection.close()
                    raise _EndedError
                self._socket = connection
            self._send_ram(connection, log, begin_ms)
        finally:
            log.close()

    def _send_ram(self, connection: socket.socket, log: BitmapUser, begin_ms: int) -> None:
        guest = self._guest
        dirty = [all_dirty(block.length // PAGE_SIZE) for block in guest.blocks]
        sender = self._make_sender(connection, dirty)
        self._control = choose_control(guest, self._settings, self._clock, self._limits)
        precopy = Precopy(
            sender, dirty, log, self._settings, self._control, self._clock, self._synced
        )
        precopy.begin()
        self._sender, self._precopy = sender, precopy
        blocks = tuple((block.idstr, block.length) for block in guest.blocks)
        start = Start(blocks, PAGE_SIZE, len(guest.writes()), self._capabilities())
        sender.put(encode(start))
        self._counts.setup_ms = _now_ms() - begin_ms
        if not self._status.change(_Status.ACTIVE):
            raise _EndedError
        if not precopy.run(self._is_active):
            raise _EndedError
        self._stop_guest()
        self._switch_over(connection, sender, precopy)

    def _make_sender(self, connection: socket.socket, dirty: list[NDArray[Any]]) -> PageSender:
        blocks = [
            SentBlock(block.idstr, block.address, bits, block.length // PAGE_SIZE, block.fd)
            for block, bits in zip(self._guest.blocks, dirty, strict=True)
        ]
        sender = PageSender(connection.fileno(), blocks, self._link_speed)
        sender.pending = sum(block.n_pages for block in blocks)
        return sender

    def _stop_guest(self) -> None:
        self._counts.stopped_ms = _now_ms()
        try:
            self._before = self._guest.transition(RunState.FINISH_MIGRATE)
        except StateError:
            if self._guest.state is RunState.FINISH_MIGRATE:  # it ran, and a vCPU is held
                self._before = RunState.RUNNING
            raise
        finally:
            if self._before is RunState.RUNNING:
                self._emit("STOP")
        if self._settings.enabled("pause-before-switchover"):
            self._change(_Status.PRE_SWITCHOVER)
            self._proceed.wait()
        self._change(_Status.DEVICE)

    def _switch_over(self, connection: socket.socket, sender: PageSender, precopy: Precopy) -> None:
        before_bytes = sender.ram_bytes
        precopy.sync()
        precopy.send_rest()
        self._counts.downtime_bytes = sender.ram_bytes - before_bytes
        running = self._before is RunState.RUNNING
        sender.put(encode(State(running, snapshot.save(self._guest))))
        sender.flush()
        self._end_stream(connection, sender)

    def _end_stream(self, connection: socket.socket, sender: PageSender) -> None:
        """Send the end, with which the destination runs, unless somebody has cancelled before."""
        while not _is_writable(connection):
            if not self._is_active():
                raise _EndedError
        with self._lock:  # a cancel comes before this, or too late
            if not self._is_active():
                raise _EndedError
            sender.put(encode(End()))
            sender.flush()
            if not self._has_return_path():
                self._complete()
                return
        self._await_ack(connection)
        with self._lock:
            self._complete()

    def _await_ack(self, connection: socket.socket) -> None:
        message = PageReceiver(connection.fileno(), (), return_limits()).receive()
        if message is None:
            raise ConnectionResetError(errno.ECONNRESET, "the destination has gone")
        if decode(message) != Ack(loaded=True):
            raise SourceError("Sibling indicated error 1")

    def _complete(self) -> None:
        counts, sender = self._counts, self._sender
        now = _now_ms()
        counts.total_ms = now - counts.begin_ms
        counts.downtime_ms = now - (counts.stopped_ms or now)
        self._guest.transition(RunState.POSTMIGRATE)
        self._before = None
        if sender is not None and self._precopy is not None:
            ms = max(counts.total_ms - counts.setup_ms, 1)
            self._precopy.mbps = sender.transferred * 8 / ms / 1000
            self._precopy.dirty_pages_rate = 0
        self._status.change(_Status.COMPLETED)

    def _finish(self) -> None:
        """Leave the guest as it was, unless it runs elsewhere now."""
        self._control.end()
        if self._before is not None:
            self._go_on(self._before)
        self._status.change(_Status.CANCELLED)
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _go_on(self, before: RunState) -> None:
        """Bring the guest back into its state; that takes as long as a vCPU is held in a write."""
        while self._guest.state is RunState.FINISH_MIGRATE and not self._closing:
            with contextlib.suppress(StateError):
                self._guest.transition(before)
                if before is RunState.RUNNING:
                    self._emit("RESUME")

    # ---- for both sides ----

    def _is_active(self) -> bool:
        return self.status in _GOING_ON

    def _change(self, to: MigrationStatus) -> None:
        if not self._status.change(to):
            raise _EndedError

    def _fail(self, reason: str) -> None:
        before, self._counts.error = self._counts.error, reason
        if not self._status.change(_Status.FAILED):
            self._counts.error = before

    def _wake(self) -> None:
        """Make the thread look at the status, wherever it waits; the lock is held."""
        self._stop.set()
        self._clock.wake()
        self._proceed.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the peer has gone
                self._socket.shutdown(socket.SHUT_RDWR)

    def _status_changed(self, status: MigrationStatus) -> None:
        if self._settings.enabled("events"):
            self._emit("MIGRATION", {"status": status.value})

    def _synced(self, count: int) -> None:
        if self._settings.enabled("events"):
            self._emit("MIGRATION_PASS", {"pass": count})

    def _capabilities(self) -> tuple[str, ...]:
        """Return the names of the capabilities that the destination has to know of."""
        return ("return-path",) if self._has_return_path() else ()

    def _has_return_path(self) -> bool:
        return self._settings.enabled("return-path")

    def _ram_info(self) -> RamInfo:
        sender, precopy = self._sender, self._precopy
        if sender is None or precopy is None:
            raise StateError("the migration has not begun")
        stopped_bytes = self._counts.downtime_bytes
        return RamInfo(
            total=sum(block.length for block in self._guest.blocks),
            dirty_sync_count=precopy.sync_count,
            pages_per_second=precopy.pages_per_second,
            downtime_bytes=stopped_bytes,
            remaining=sender.pending * PAGE_SIZE,
            mbps=precopy.mbps,
            transferred=sender.transferred,
            precopy_bytes=sender.ram_bytes - stopped_bytes,
            duplicate=sender.duplicate,
            dirty_pages_rate=precopy.dirty_pages_rate,
            normal_bytes=sender.normal * PAGE_SIZE,
            normal=sender.normal,
        )


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _is_writable(connection: socket.socket) -> bool:
    """Wait for a moment until the socket takes a little more; an ended one takes it, too."""
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    return bool(poll.poll(_POLL_MS))
