# SPDX-License-Identifier: MIT
"""The destination's end of a migration: from listening to the moment when the guest runs here."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from typing import TYPE_CHECKING

from pysampler.core import PageReceiver, ReceivedBlock, TruncatedStreamError
from pysampler.errors import FormatError, PysamplerError
from pysampler.guest import snapshot
from pysampler.guest.run_state import RunState
from pysampler.migration.channel import listen
from pysampler.migration.info import MigrationInfo
from pysampler.migration.status import RUNNING, MigrationStatus, StatusCell
from pysampler.migration.stream import Ack, End, IterationEnd, Start, State, decode, encode, limits
from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from pysampler.guest.guest import Guest
    from pysampler.migration.address import Address
    from pysampler.migration.channel import Listener
    from pysampler.migration.settings import Settings
    from pysampler.migration.stream import AnyMessage

_Status = MigrationStatus
# QEMU's words, and those for an end that comes too early.
_FAILED = "load of migration failed: {}"
_CUT_SHORT = "Invalid argument"


class Incoming:
    """A migration from another guest. A thread of its own does it.

    Args:
        guest: waits for it (state inmigrate).
        settings: capabilities.
        emit: takes the events RESUME and MIGRATION.
        failed: is called with the reason when it fails, in the thread.
    """

    def __init__(
        self,
        guest: Guest,
        settings: Settings,
        emit: Callable[..., None],
        failed: Callable[[str], None],
    ) -> None:
        self._guest = guest
        self._settings = settings
        self._emit = emit
        self._failed = failed
        self._error = ""
        self._address: Address | None = None
        self._lock = threading.Lock()  # guards the two sockets
        self._listener: Listener | None = None
        self._socket: socket.socket | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="incoming", daemon=True)
        self._status = StatusCell(self._status_changed)

    @property
    def status(self) -> MigrationStatus:
        """How far it is."""
        return self._status.value

    def start(self, address: Address) -> None:
        """Listen; what goes wrong with the migration itself is found in `info`.

        Raises:
            SourceError: nobody can listen there. The status is setup all the same, as in QEMU.
        """
        self._status.change(_Status.SETUP)
        self._listener = listen(address)
        self._address = self._listener.address
        self._thread.start()

    @property
    def is_listening(self) -> bool:
        """Whether it could listen, whatever has become of it."""
        return self._address is not None

    @property
    def uri(self) -> str | None:
        """Where it listens or has listened, with the real port; None where it could not."""
        return None if self._address is None else self._address.uri

    def close(self, timeout_s: float) -> bool:
        """End it as the process ends; return whether its thread has ended."""
        with self._lock:
            self._closing = True
            if self._listener is not None:
                self._listener.close()
            if self._socket is not None:
                with contextlib.suppress(OSError):  # the peer has gone
                    self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def info(self) -> MigrationInfo:
        """Return what query-migrate tells."""
        status = self.status
        listens = self._address is not None and status in RUNNING
        return MigrationInfo(
            status=status.value,
            error_desc=self._error or None,
            socket_address=[self._address.to_json()] if listens and self._address else None,
        )

    # ---- the thread ----

    def _run(self) -> None:
        try:
            self._receive()
        except OSError as error:
            self._fail(os.strerror(error.errno or 0))
        except TruncatedStreamError:
            self._fail(_CUT_SHORT)
        except PysamplerError as error:
            self._fail(str(error))
        except Exception as error:  # a fault of ours must be seen, too
            self._fail(f"{type(error).__name__}: {error}")
            raise
        finally:
            with self._lock:
                if self._socket is not None:
                    self._socket.close()
                    self._socket = None

    def _receive(self) -> None:
        listener = self._listener
        connection = None if listener is None else listener.accept()
        if connection is None:
            return  # closed meanwhile
        with self._lock:
            self._socket = connection
        if listener is not None:
            listener.close()  # nobody else can migrate here
        if self._closing or not self._status.change(_Status.ACTIVE):
            return
        blocks = [
            ReceivedBlock(block.idstr, block.address, block.length // PAGE_SIZE)
            for block in self._guest.blocks
        ]
        receiver = PageReceiver(
            connection.fileno(), blocks, limits(snapshot.max_bytes(self._guest))
        )
        start = self._next(receiver)
        if not isinstance(start, Start):
            raise FormatError("it does not begin with its blocks")
        self._check_fits(start)
        running = self._load_all(receiver)
        returns = "return-path" in start.capabilities
        if returns and _has_hung_up(connection):  # it was cancelled: the guest runs there
            raise FormatError(_CUT_SHORT)
        self._go_on(running)
        self._status.change(_Status.COMPLETED)
        if returns:
            connection.sendall(encode(Ack(loaded=True)))

    def _check_fits(self, start: Start) -> None:
        theirs = dict(start.blocks)
        ours = {block.idstr: block.length for block in self._guest.blocks}
        for idstr, length in start.blocks:
            if idstr not in ours:
                raise FormatError(
                    f"block {idstr} of {format_size(length)} is not here;"
                    f" start this guest with --block {idstr}={format_size(length)}"
                )
            if length != ours[idstr]:
                raise FormatError(
                    f"{idstr} has {format_size(length)} there and"
                    f" {format_size(ours[idstr])} here; start this guest with the same size"
                )
        for idstr in ours:
            if idstr not in theirs:
                raise FormatError(f"there is no block {idstr} there; start this guest without it")
        n_vcpus = len(self._guest.writes())
        if start.vcpus != n_vcpus:
            raise FormatError(
                f"{start.vcpus} vCPUs there and {n_vcpus} here;"
                f" start this guest with --vcpus {start.vcpus}"
            )

    def _load_all(self, receiver: PageReceiver) -> bool:
        """Take all RAM and the guest's state; return whether it ran."""
        while isinstance(message := self._next(receiver), IterationEnd):
            pass
        if not isinstance(message, State):
            raise _out_of_order(message)
        n_pages = receiver.normal + receiver.duplicate
        snapshot.load(self._guest, message.guest)
        end = self._next(receiver)
        # Pages that come after the state are none of the guest that was saved.
        if not isinstance(end, End) or receiver.normal + receiver.duplicate != n_pages:
            raise _out_of_order(end)
        return message.running

    def _next(self, receiver: PageReceiver) -> AnyMessage:
        message = receiver.receive()
        if message is None:
            raise FormatError(_CUT_SHORT)
        return decode(message)

    def _go_on(self, was_running: bool) -> None:
        """Go on as the source's guest would have; one that ran waits if `stop` was asked for."""
        if was_running and self._guest.autostart:
            self._guest.transition(RunState.RUNNING)
            self._emit("RESUME")
        else:
            self._guest.transition(RunState.PAUSED)

    def _fail(self, reason: str) -> None:
        if self._closing:
            return
        self._error = _FAILED.format(reason)
        if self._status.change(_Status.FAILED):
            self._failed(self._error)

    def _status_changed(self, status: MigrationStatus) -> None:
        if self._settings.enabled("events"):
            self._emit("MIGRATION", {"status": status.value})


def _out_of_order(message: AnyMessage) -> FormatError:
    return FormatError(f"message {type(message).__name__.lower()} is out of order")


def _has_hung_up(connection: socket.socket) -> bool:
    """Return whether the other end waits for no answer any more."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))
