# SPDX-License-Identifier: MIT
"""One client: negotiation, its requests in turn, its replies and events."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from pysampler.errors import PysamplerError
from pysampler.qmp.commands.definition import Command
from pysampler.qmp.schema import check_arguments
from pysampler.qmp.wire.json_stream import MAX_VALUE_BYTES, BadInput, JsonStream
from pysampler.qmp.wire.messages import NO_ID, QmpError, failure, greeting, success

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pysampler.qmp.commands.definition import Arguments, Monitor

# How much is read, and how many requests are answered, before others have their turn.
READ_BYTES = 64 << 10
_TURN = 64
_TURN_BYTES = 64 << 10
# How many requests may wait for one that blocks. As in QEMU, nothing more is read then, so a
# request that would run out of band waits, too.
MAX_WAITING = 8
# Replies wait for a client that does not read them, and so does its input. Events cannot
# wait: beyond this much unread output the client is dropped.
MAX_UNREAD_BYTES = 1 << 20
FAREWELL_S = 1.0  # how long a client has to take its last replies

_NEGOTIATE = Command(lambda _, __: {})


class Session:
    """A connection from greeting to end; all of it in the event loop.

    Requests are answered in turn. Those that may block run aside, and the next one waits for
    them; only what is asked for out of band is answered meanwhile.

    Attributes:
        task: ends with the connection.

    Args:
        connection: to the client; closed with the session.
        monitor: the objects that commands work on.
        run_aside: runs a function that may block, out of the event loop.
        send_events: sends events that are due, before a reply that may tell of what they tell.
    """

    def __init__(
        self,
        connection: socket.socket,
        monitor: Monitor,
        run_aside: Callable[[Callable[[], bytes]], asyncio.Future[bytes]],
        send_events: Callable[[], None],
    ) -> None:
        self._monitor = monitor
        self._run_aside = run_aside
        self._send_events = send_events
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._waiting: deque[tuple[Any, int]] = deque()  # requests and their bytes
        self._waiting_bytes = 0
        self._blocking: asyncio.Future[bytes] | None = None  # the reply that they wait for
        self._moved_on = asyncio.Event()
        self._closing = False
        self._is_reading = False
        self._negotiated = False
        self._oob = False
        self.task = asyncio.create_task(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            sock=connection, limit=READ_BYTES
        )
        self._send(greeting())
        stream = JsonStream()
        try:
            await self._flush()
            while data := await self._read():
                await self._take_all(stream, data)
            while self._blocking is not None:
                await self._wait_until_moved_on()
            await self._flush()
        except OSError:
            pass  # the client is gone
        finally:
            if self._blocking is not None:
                self._blocking.cancel()
            self._writer.close()
            try:
                await asyncio.wait_for(self._writer.wait_closed(), FAREWELL_S)
            except (asyncio.TimeoutError, OSError):
                self._writer.transport.abort()

    async def _read(self) -> bytes:
        if self._closing:
            return b""
        self._is_reading = True
        try:
            return await self._reader.read(READ_BYTES)
        except asyncio.CancelledError:
            if not self._closing:
                raise
            return b""
        finally:
            self._is_reading = False

    async def _take_all(self, stream: JsonStream, data: bytes) -> None:
        for value in stream.feed(data):
            if self._oob and _is_out_of_band(value):
                self._answer(value)
            else:
                self._waiting.append((value, stream.size))
                self._waiting_bytes += stream.size
                self._answer_waiting()
            while self._is_full():
                await self._wait_until_moved_on()
            if self._closing:
                break
            if len(self._out) >= _TURN or self._out_bytes >= _TURN_BYTES:
                await self._flush()
                await asyncio.sleep(0)
        await self._flush()

    def _is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING or self._waiting_bytes >= MAX_VALUE_BYTES

    async def _wait_until_moved_on(self) -> None:
        self._moved_on.clear()
        await self._moved_on.wait()

    def _answer_waiting(self) -> None:
        """Answer what waits, until something blocks."""
        while self._waiting and self._blocking is None:
            value, size = self._waiting.popleft()
            self._waiting_bytes -= size
            self._answer(value)

    def send_event(self, event: bytes) -> None:
        """Send an event, unless the client has yet to negotiate."""
        if self._negotiated:
            self._send(event)
            self._write()
            if self._writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                self._writer.transport.abort()

    def close(self) -> None:
        """Answer the request at hand, and no more; `task` ends when the replies are sent."""
        self._closing = True
        if self._is_reading:
            self.task.cancel()

    def abort(self) -> None:
        """Drop the connection with everything unsent."""
        self._writer.transport.abort()
        self.task.cancel()

    def _send(self, message: bytes) -> None:
        self._out.append(message)
        self._out_bytes += len(message)

    def _write(self) -> None:
        self._writer.write(b"".join(self._out))
        self._out.clear()
        self._out_bytes = 0

    async def _flush(self) -> None:
        self._write()
        await self._writer.drain()

    def _answer(self, value: Any) -> None:
        """Answer a request, or let it run aside: then the reply comes when it is done."""
        if isinstance(value, BadInput):
            self._send(failure(QmpError(value.desc)))
            return
        request_id = value.get("id", NO_ID) if isinstance(value, dict) else NO_ID
        try:
            command, arguments = self._check_request(value)
        except QmpError as error:
            self._send(failure(error, request_id))
            return
        run = partial(_reply_of, command, self._monitor, arguments, request_id)
        if not command.blocks(self._monitor, arguments):
            reply = run()
            self._send_events()
            self._send(reply)
            return
        self._write()  # a client must not wait for what is ready
        self._blocking = self._run_aside(run)
        self._blocking.add_done_callback(self._move_on)

    def _move_on(self, done: asyncio.Future[bytes]) -> None:
        self._blocking = None
        self._moved_on.set()
        if done.cancelled():
            return
        is_gone = self._writer.transport.is_closing()
        if is_gone or self._closing:
            self._waiting.clear()
            self._waiting_bytes = 0
        if is_gone:
            return
        self._send_events()
        self._send(done.result())
        self._answer_waiting()
        self._write()

    def _check_request(self, value: Any) -> tuple[Command, Arguments]:
        """Return command and arguments of a request."""
        if not isinstance(value, dict):
            raise QmpError("QMP input must be a JSON object")
        name = None
        arguments: Arguments = {}
        for key, member in value.items():
            if key == "execute" or (key == "exec-oob" and self._oob):
                if not isinstance(member, str):
                    raise QmpError(f"QMP input member '{key}' must be a string")
                if name is not None:
                    raise QmpError("QMP input member 'execute' clashes with 'exec-oob'")
                name = member
            elif key == "arguments":
                if not isinstance(member, dict):
                    raise QmpError("QMP input member 'arguments' must be an object")
                arguments = member
            elif key != "id":
                raise QmpError(f"QMP input member '{key}' is unexpected")
        if name is None:
            raise QmpError("QMP input lacks member 'execute'")
        if not self._negotiated and name != "qmp_capabilities":
            raise QmpError(
                "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
            )
        command = self._monitor.commands.get(name)
        if command is None:
            raise QmpError(f"The command {name} has not been found", "CommandNotFound")
        if "exec-oob" in value and not command.allow_oob:
            raise QmpError(f"The command {name} does not support OOB")
        arguments = check_arguments(command.arguments, arguments)
        if name == "qmp_capabilities" and not self._negotiated:
            self._negotiated = True
            self._oob = "oob" in arguments.get("enable", ())
            return _NEGOTIATE, {}
        return command, arguments


def _is_out_of_band(value: Any) -> bool:
    return isinstance(value, dict) and "exec-oob" in value and "execute" not in value


def _reply_of(
    command: Command, monitor: Monitor, arguments: Arguments, request_id: object
) -> bytes:
    """Run a command; return its reply. It never raises, so that the guest goes on."""
    try:
        return success(command.run(monitor, arguments), request_id)
    except QmpError as error:
        return failure(error, request_id)
    except PysamplerError as error:
        return failure(QmpError(str(error)), request_id)
    except Exception as error:  # noqa: BLE001
        return failure(QmpError(f"internal error: {type(error).__name__}: {error}"), request_id)
