# SPDX-License-Identifier: MIT
"""One client: negotiation, its requests in turn, its replies and events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from pysampler.errors import PysamplerError
from pysampler.qmp.schema import check_arguments
from pysampler.qmp.wire.json_stream import BadInput, JsonStream
from pysampler.qmp.wire.messages import NO_ID, QmpError, failure, greeting, success

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from pysampler.qmp.commands.definition import Arguments, Monitor

# How much is read, and how many requests are answered, before others have their turn.
READ_BYTES = 64 << 10
_TURN = 64
_TURN_BYTES = 64 << 10
# Replies wait for a client that does not read them, and so does its input. Events cannot
# wait: beyond this much unread output the client is dropped.
MAX_UNREAD_BYTES = 1 << 20
FAREWELL_S = 1.0  # how long a client has to take its last replies


class Session:
    """A connection from greeting to end; all of it in the event loop.

    Attributes:
        task: ends with the connection.

    Args:
        connection: to the client; closed with the session.
        monitor: what commands work on.
        run_aside: runs a function that may block, out of the event loop.
    """

    def __init__(
        self,
        connection: socket.socket,
        monitor: Monitor,
        run_aside: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._monitor = monitor
        self._run_aside = run_aside
        self._out: list[bytes] = []
        self._closing = False
        self._is_reading = False
        self._negotiated = False
        self._oob = False
        self.task = asyncio.create_task(self._serve(connection))

    async def _serve(self, connection: socket.socket) -> None:
        self._reader, self._writer = await asyncio.open_connection(
            sock=connection, limit=READ_BYTES
        )
        self._out.append(greeting())
        stream = JsonStream()
        try:
            await self._flush()
            while data := await self._read():
                await self._answer_all(stream, data)
        except OSError:
            pass  # the client is gone
        finally:
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

    async def _answer_all(self, stream: JsonStream, data: bytes) -> None:
        n_bytes = 0
        for value in stream.feed(data):
            reply = await self._answer(value)
            self._out.append(reply)
            n_bytes += len(reply)
            if self._closing:
                break
            if len(self._out) >= _TURN or n_bytes >= _TURN_BYTES:
                n_bytes = 0
                await self._flush()
                await asyncio.sleep(0)
        await self._flush()

    def send_event(self, event: bytes) -> None:
        """Send an event, unless the client has yet to negotiate."""
        if self._negotiated:
            self._out.append(event)
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

    def _write(self) -> None:
        self._writer.write(b"".join(self._out))
        self._out.clear()

    async def _flush(self) -> None:
        self._write()
        await self._writer.drain()

    async def _answer(self, value: Any) -> bytes:
        if isinstance(value, BadInput):
            return failure(QmpError(value.desc))
        request_id = value.get("id", NO_ID) if isinstance(value, dict) else NO_ID
        try:
            name, arguments = self._check_request(value)
            return success(await self._execute(name, arguments), request_id)
        except QmpError as error:
            return failure(error, request_id)
        except PysamplerError as error:
            return failure(QmpError(str(error)), request_id)
        except Exception as error:  # noqa: BLE001  # whatever a command does, the guest goes on
            return failure(QmpError(f"internal error: {type(error).__name__}: {error}"), request_id)

    def _check_request(self, value: Any) -> tuple[str, Arguments]:
        """Return command and arguments of a request, the command known, the arguments unchecked."""
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
        if name not in self._monitor.commands:
            raise QmpError(f"The command {name} has not been found", "CommandNotFound")
        if "exec-oob" in value:
            raise QmpError(f"The command {name} does not support OOB")
        return name, arguments

    async def _execute(self, name: str, arguments: Arguments) -> Any:
        command = self._monitor.commands[name]
        arguments = check_arguments(command.arguments, arguments)
        if not self._negotiated and name == "qmp_capabilities":
            self._negotiated = True
            self._oob = "oob" in arguments.get("enable", ())
            return {}
        if command.may_block:
            return await self._run_aside(lambda: command.run(self._monitor, arguments))
        return command.run(self._monitor, arguments)
