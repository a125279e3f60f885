# SPDX-License-Identifier: MIT
"""A client of QMP, as QEMU and the emulated guest serve it.

What the server says is bounded: in bytes for each command, and in time.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from pysampler.errors import PysamplerError, SourceError

if TYPE_CHECKING:
    from typing_extensions import Self

_REPLY_MAX = 8 << 20  # bytes that a server may send while one command, or one pause, lasts
_EVENTS_MAX = 10_000  # that nobody has taken out; QEMU sends some for each pass at most
_TCP = re.compile(r"tcp:(?:\[([^\[\]]+)\]|([^:\[\]]*)):([0-9]{1,5})", re.ASCII)


class QmpError(PysamplerError):
    """The server refused a command; the message is the description that it gave."""


class QmpClient:
    """A session, negotiated. One thread at a time may use it.

    Args:
        address: ``unix:PATH``, ``PATH`` or ``tcp:HOST:PORT``.
        timeout_s: for the connection and the greeting, and for the reply to each command.

    Attributes:
        events: what the server told by itself, in order and not yet taken out; see `pause`.

    Raises:
        SourceError: nobody listens there, or does not answer in time as QEMU does.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        self._address = address.removeprefix("unix:")
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._data = bytearray()
        self._left = _REPLY_MAX
        self._n_commands = 0
        self.events: list[dict[str, Any]] = []
        try:
            self._negotiate(address)
        except BaseException:
            self.close()
            raise

    def execute(
        self, command: str, arguments: dict[str, Any] | None = None, deadline: float | None = None
    ) -> Any:
        """Execute a command and return what its reply holds.

        Args:
            command: its name.
            arguments: name -> value.
            deadline: for its reply, by `time.monotonic`; None for the session's time from now.

        Raises:
            QmpError: the server refuses it.
            SourceError: the server is gone, or does not answer in time as QEMU does.
        """
        if deadline is None:
            deadline = time.monotonic() + self._timeout_s
        self._n_commands += 1
        request: dict[str, Any] = {"execute": command, "id": self._n_commands}
        if arguments is not None:
            request["arguments"] = arguments
        try:
            return self._execute(request, deadline)
        except TimeoutError as error:
            raise self._silent() from error
        except (OSError, ValueError) as error:
            raise self._broken(error) from error

    def pause(self, seconds: float) -> list[dict[str, Any]]:
        """Wait; an event ends that early. Return, and take out, the events so far.

        Raises:
            SourceError: the server is gone, or does not send what QEMU does.
        """
        self._left = _REPLY_MAX
        deadline = time.monotonic() + seconds
        try:
            while not self.events:
                self._note(self._next(deadline))
        except TimeoutError:
            pass
        except (OSError, ValueError) as error:
            raise self._broken(error) from error
        events, self.events = self.events, []
        return events

    def peer_pid(self) -> int | None:
        """Return the process that listens, as the kernel knows it; None where it does not.

        That is so for TCP, and for a process of another pid namespace. It is the process that
        opened the socket, which may have handed it to another one.
        """
        if self._socket is None or self._socket.family != socket.AF_UNIX:
            return None
        credentials = struct.Struct("3i")
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
        pid: int = credentials.unpack(data)[0]
        return pid or None

    def close(self) -> None:
        """End the session; a second call does nothing."""
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _negotiate(self, address: str) -> None:
        deadline = time.monotonic() + self._timeout_s
        try:
            self._connect(address)
            if "QMP" not in self._next(deadline):
                raise ValueError("whoever listens there does not greet as QMP does")
        except TimeoutError as error:
            raise self._silent() from error
        except (OSError, ValueError) as error:  # ValueError: also a NUL in the path
            raise self._broken(error) from error
        try:
            self.execute("qmp_capabilities", deadline=deadline)
        except QmpError as error:
            raise self._broken(error) from error

    def _connect(self, address: str) -> None:
        match = _TCP.fullmatch(address)
        if match is not None:
            place = (match[1] or match[2], int(match[3]))
            self._socket = socket.create_connection(place, self._timeout_s)
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(self._timeout_s)
            self._socket.connect(self._address)

    def _execute(self, request: dict[str, Any], deadline: float) -> Any:
        self._left = _REPLY_MAX
        self._opened(deadline).sendall(json.dumps(request).encode() + b"\n")
        while True:
            reply = self._next(deadline)
            if reply.get("id", request["id"]) != request["id"]:
                continue  # of a command that was given up
            if "return" in reply:
                return reply["return"]
            if "error" in reply:
                error = reply["error"]
                text = error.get("desc") if isinstance(error, dict) else None
                raise QmpError(text if isinstance(text, str) else "refused without a reason")
            self._note(reply)

    def _note(self, message: dict[str, Any]) -> None:
        if isinstance(message.get("event"), str):
            if len(self.events) == _EVENTS_MAX:
                raise ValueError("it says too much")
            self.events.append(message)

    def _next(self, deadline: float) -> dict[str, Any]:
        """Return the next object that the server sends."""
        searched = 0
        while (end := self._data.find(b"\n", searched)) < 0:
            searched = len(self._data)
            chunk = self._opened(deadline).recv(1 << 16)
            self._left -= len(chunk)
            if not chunk or self._left < 0:
                raise ValueError("it ends the session" if not chunk else "it says too much")
            self._data += chunk
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ValueError("it does not answer with JSON objects")  # noqa: TRY004 - text from outside
        return message

    def _opened(self, deadline: float) -> socket.socket:
        """Return the socket, which will wait until the deadline at most."""
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        assert self._socket is not None  # noqa: S101 - since the constructor
        self._socket.settimeout(left_s)
        return self._socket

    def _silent(self) -> SourceError:
        return SourceError(
            f"QMP socket {self._address}: no answer within {self._timeout_s:g} s; QEMU serves one"
            " client at a time"
        )

    def _broken(self, error: Exception) -> SourceError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return SourceError(f"QMP socket {self._address}: {reason}")
