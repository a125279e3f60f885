# SPDX-License-Identifier: MIT
"""The sockets of a migration. Nothing here waits for ever: another thread can end each wait."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING

from pysampler.errors import PysamplerError, SourceError
from pysampler.host.listener import listen_tcp, listen_unix
from pysampler.host.writer import is_trusted
from pysampler.migration.address import Address, TcpAddress, UnixAddress

if TYPE_CHECKING:
    from pysampler.host import listener as host_listener

CONNECT_LIMIT_S = 10.0

_LOOK_S = 0.05  # so often it is seen whether a connecting is to end


class Listener:
    """Waits for sources. Made by `listen`.

    Attributes:
        address: where it listens, with the real port.
    """

    def __init__(self, listening: host_listener.Listener, address: Address) -> None:
        self.address = address
        self._listening = listening
        self._closed = False
        # The descriptor is not given back while somebody waits at it.
        self._accepting = threading.Lock()

    def accept(self) -> socket.socket | None:
        """Wait for a source; return a blocking socket, or None once the listener is closed.

        Raises:
            SourceError: there is no descriptor or memory for it.
        """
        with self._accepting:
            if self._closed:
                return None
            try:
                accepted, _ = self._listening.socket.accept()
            except OSError as error:
                if self._closed:
                    return None
                raise SourceError(f"Unable to accept connection: {error.strerror}") from error
        return _prepared(accepted)

    def close(self) -> None:
        """End an `accept` that waits, stop listening, remove a unix socket's file.

        A second call does nothing.
        """
        already, self._closed = self._closed, True
        if already:
            return
        self._listening.socket.shutdown(socket.SHUT_RDWR)  # wakes who waits
        with self._accepting:
            self._listening.close()


def listen(address: Address) -> Listener:
    """Listen for a source at an address.

    Raises:
        SourceError: it cannot be used, with QEMU's text.
    """
    try:
        if isinstance(address, UnixAddress):
            return Listener(listen_unix(address.path), address)
        listening = listen_tcp(address.ip, address.port)
    except OSError as error:
        raise SourceError(f"Failed to bind socket to {address}: {error.strerror}") from error
    port = listening.socket.getsockname()[1]
    return Listener(listening, TcpAddress(address.host, port))


def connect(
    address: Address, stop: threading.Event, limit_s: float = CONNECT_LIMIT_S
) -> socket.socket:
    """Connect to a destination; return a blocking socket.

    Args:
        address: where it listens.
        stop: ends the waiting when it is set.
        limit_s: seconds after which the destination is given up.

    Raises:
        SourceError: there is none, with QEMU's text; or another user's process listens there.
    """
    what = f"Failed to connect to '{address}'"
    connecting = socket.socket(_family(address), socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        _wait_until_connected(connecting, address, stop, time.monotonic() + limit_s)
        if isinstance(address, UnixAddress):
            uid = _uid_of_peer(connecting)
            if not is_trusted(uid):
                raise SourceError(f"{what}: a process of another user (uid {uid}) listens there")
    except OSError as error:
        connecting.close()
        raise SourceError(f"{what}: {os.strerror(error.errno or errno.EIO)}") from error
    except PysamplerError:
        connecting.close()
        raise
    return _prepared(connecting)


def _family(address: Address) -> socket.AddressFamily:
    if isinstance(address, UnixAddress):
        return socket.AF_UNIX
    return socket.AF_INET if address.ip.version == 4 else socket.AF_INET6


def _wait_until_connected(
    connecting: socket.socket, address: Address, stop: threading.Event, end: float
) -> None:
    where = address.path if isinstance(address, UnixAddress) else (str(address.ip), address.port)
    while True:
        number = connecting.connect_ex(where)
        if number in {0, errno.EISCONN}:
            return
        if number not in {errno.EAGAIN, errno.EINPROGRESS, errno.EALREADY, errno.EINTR}:
            raise OSError(number, os.strerror(number))
        if stop.is_set():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        if time.monotonic() >= end:
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if number == errno.EAGAIN:  # a unix listener whose queue is full
            stop.wait(_LOOK_S)
        else:
            _wait_writable(connecting)


def _wait_writable(connecting: socket.socket) -> None:
    poll = select.poll()
    poll.register(connecting, select.POLLOUT)
    poll.poll(_LOOK_S * 1000)


def _uid_of_peer(connected: socket.socket) -> int:
    """Return the user who began to listen at the other end of a unix socket."""
    credentials = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid
    data = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    uid: int = credentials.unpack(data)[1]
    return uid


def _prepared(connected: socket.socket) -> socket.socket:
    connected.setblocking(True)
    if connected.family != socket.AF_UNIX:
        # An iteration's end must not wait for the answer to the pages before it.
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected
