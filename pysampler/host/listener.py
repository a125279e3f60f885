# SPDX-License-Identifier: MIT
"""Listening sockets: unix ones for their user alone, and TCP on the loopback interface."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
from contextlib import ExitStack
from dataclasses import dataclass

from pysampler.host.writer import is_trusted, place_of

UNIX_PATH_MAX = 107  # bytes; sun_path of unix(7) without its last

_BACKLOG = 16
_ALIVE_TIMEOUT_S = 1.0

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass
class Listener:
    """A listening socket out of other users' reach, but for loopback TCP.

    Attributes:
        socket: it listens.
        address: ``unix:PATH`` or ``tcp:HOST:PORT``, with the real port.
    """

    socket: socket.socket
    address: str
    _file: tuple[int, str, int] | None = None  # descriptor of its folder, name in it, inode

    def close(self) -> None:
        """Close the socket and remove its file; a second call does nothing."""
        self.socket.close()
        if self._file is None:
            return
        folder, name, inode = self._file
        self._file = None
        try:
            # Somebody may have taken it for a stale one and put their own in its place.
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino == inode:
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            pass
        finally:
            os.close(folder)


def loopback(host: str) -> IpAddress | None:
    """Return the address that a host's name stands for; None if it is none of this machine's own.

    Nothing else than ``localhost`` is looked up.
    """
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
    return ip if ip.is_loopback else None


def listen_tcp(ip: IpAddress, port: int) -> Listener:
    """Listen at a port, or at any that is free when it is 0.

    Raises:
        OSError: it cannot be used.
    """
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    listening = socket.create_server((str(ip), port), family=family, backlog=_BACKLOG)
    port = listening.getsockname()[1]
    return Listener(listening, f"tcp:{ip}:{port}" if ip.version == 4 else f"tcp:[{ip}]:{port}")


def listen_unix(path: str) -> Listener:
    """Listen at a path of 1 to `UNIX_PATH_MAX` bytes.

    The file has mode 0600 from its first moment. The file that a dead server left behind is
    replaced.

    Raises:
        OSError: it cannot be used; its strerror says why. A live server has it, for example.
        PysamplerError: a link on the way to it belongs to another user.
    """
    with ExitStack() as undo:
        # By its descriptor: nobody can put another folder in its place meanwhile.
        folder, name = place_of(path)
        undo.callback(os.close, folder)
        here = f"/proc/self/fd/{folder}/{name}"
        listening = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        _remove_stale(folder, name)
        mask = os.umask(0o177)
        try:
            listening.bind(here)
        finally:
            os.umask(mask)
        inode = os.lstat(here).st_ino
        listening.listen(_BACKLOG)
        undo.pop_all()
    return Listener(listening, f"unix:{path}", (folder, name, inode))


def _remove_stale(folder: int, name: str) -> None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "the file is there and is not a socket")
    if not is_trusted(status.st_uid):
        raise OSError(errno.EPERM, "the socket there is another user's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ALIVE_TIMEOUT_S)
        try:
            probe.connect(f"/proc/self/fd/{folder}/{name}")
        except ConnectionRefusedError:
            os.unlink(name, dir_fd=folder)
            return
        except TimeoutError:
            pass  # somebody is there, and busy
    raise OSError(errno.EADDRINUSE, "a running process serves it; choose another path")
