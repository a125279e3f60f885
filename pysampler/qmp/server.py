# SPDX-License-Identifier: MIT
"""The QMP server: an event loop in a thread of its own, beside the guest's vCPUs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from pysampler.qmp.aside import Aside
from pysampler.qmp.commands.definition import Monitor
from pysampler.qmp.commands.table import COMMANDS, LINES
from pysampler.qmp.dirty_rate_state import DirtyRate
from pysampler.qmp.session import FAREWELL_S, Session
from pysampler.qmp.wire.messages import event

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pysampler.host.listener import Listener
    from pysampler.qmp.interface import Measure, ServedGuest, ServedMigration

MAX_CLIENTS = 64
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE_S = 0.25  # until somebody may have closed what is scarce


class QmpServer:
    """Serves QMP for a guest.

    >>> server = QmpServer(guest, measure, migration, listen("unix:guest.sock"))
    >>> server.start()
    >>> guest.shutdown_requested.wait()
    >>> server.close()

    Args:
        guest: the guest that is served; it outlives the server.
        measure: runs calc-dirty-rate.
        migration: the guest's migration; its events go to the clients.
        listener: accepts clients; closed with the server.
        say: takes messages for the user, a line each.
    """

    def __init__(
        self,
        guest: ServedGuest,
        measure: Measure,
        migration: ServedMigration,
        listener: Listener,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._listener = listener
        self._say = say
        self._reported_scarce = False
        self._dirty_rate = DirtyRate(measure)
        self._monitor = Monitor(
            guest,
            self._dirty_rate,
            migration,
            self._emit,
            self.shutdown,
            COMMANDS,
            LINES,
        )
        self._sessions: set[Session] = set()
        self._may_say_shutdown = threading.Semaphore(1)
        self._events: deque[bytes] = deque()  # to be sent, in the order of their times
        self._events_lock = threading.Lock()
        self._aside = Aside()
        migration.send_events_to(self._emit)
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """``unix:PATH`` or ``tcp:HOST:PORT``, with the real port."""
        return self._listener.address

    def start(self) -> None:
        """Begin to serve."""
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="qmp", daemon=True)
        self._thread.start()
        ready.wait()

    def shutdown(self, reason: str) -> None:
        """Tell the clients that the guest ends: ``host-qmp-quit``, ``host-signal``. Only once."""
        if self._may_say_shutdown.acquire(blocking=False):
            self._emit("SHUTDOWN", {"guest": False, "reason": reason})

    def close(self) -> None:
        """Send what is unsent, end a running measurement, remove the socket.

        A second call does nothing.
        """
        if self._loop is not None and self._thread is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
        self._dirty_rate.close()
        self._aside.close()

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._serve(ready))
        finally:
            self._listener.close()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        listening = self._listener.socket
        listening.setblocking(False)
        self._loop.add_reader(listening, self._accept, listening)
        ready.set()
        await self._stopping.wait()
        self._loop.remove_reader(listening)
        sessions = tuple(self._sessions)
        if not sessions:
            return
        tasks = [session.task for session in sessions]
        for session in sessions:
            session.close()
        await asyncio.wait(tasks, timeout=FAREWELL_S)
        for session in sessions:
            session.abort()
        await asyncio.wait(tasks)

    def _accept(self, listening: socket.socket) -> None:
        # By hand: asyncio's own servers lose clients that come while they close.
        try:
            connection, _ = listening.accept()
        except OSError as error:
            if error.errno in _SCARCE:
                self._pause(listening, error)
            return  # else it is gone again
        if len(self._sessions) >= MAX_CLIENTS:
            connection.close()
            return
        session = Session(connection, self._monitor, self._aside.run, self._send_events)
        self._sessions.add(session)
        session.task.add_done_callback(lambda _: self._sessions.discard(session))

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Accept nobody for a while: a waiting client would wake the loop again at once."""
        if self._loop is None:
            return
        if not self._reported_scarce:
            self._reported_scarce = True
            self._say(f"QMP: a client waits: {error.strerror}; raise `ulimit -n`")
        self._loop.remove_reader(listening)
        self._loop.call_later(_PAUSE_S, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if self._loop is not None and not self._stopping.is_set():
            self._loop.add_reader(listening, self._accept, listening)

    def _emit(self, name: str, data: dict[str, Any] | None = None) -> None:
        if self._loop is None:
            return
        with self._events_lock:
            self._events.append(event(name, data))
        if threading.current_thread() is self._thread:
            self._send_events()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and no client is left
                self._loop.call_soon_threadsafe(self._send_events)

    def _send_events(self) -> None:
        while self._events:
            message = self._events.popleft()
            for session in tuple(self._sessions):
                session.send_event(message)
