# SPDX-License-Identifier: MIT
"""The server's address: a unix socket for its user alone, or loopback TCP. Nothing else."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from contextlib import ExitStack
from dataclasses import dataclass

from pysampler.errors import SourceError, UsageError
from pysampler.host.writer import is_trusted, place_of

_TCP = re.compile(r"tcp:(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):([0-9]{1,5})", re.ASCII)
_UNIX_PATH_MAX = 107  # bytes; sun_path of unix(7) without its last
_BACKLOG = 16
_ALIVE_TIMEOUT_S = 1.0


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


def listen(address: str) -> Listener:
    """Listen at ``unix:PATH`` or ``tcp:HOST:PORT`` (port 0: any).

    The file of a unix socket has mode 0600 from its first moment. The file that a dead server
    left behind is replaced.

    Raises:
        UsageError: the address is neither, or not a loopback one.
        SourceError: it cannot be used; a live server has it, for example.
    """
    if address.startswith("unix:"):
        return _listen_unix(address.removeprefix("unix:"))
    match = _TCP.fullmatch(address)
    if match is None:
        raise UsageError(f"QMP address {address[:120]!r}: write unix:PATH or tcp:127.0.0.1:PORT")
    return _listen_tcp(match[1] or match[2], int(match[3]))


def _listen_tcp(host: str, port: int) -> Listener:
    try:
        ip = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        ip = None
    if ip is None or not ip.is_loopback:
        raise UsageError(
            f"QMP address tcp:{host}:{port}: QMP has no password, so only loopback is served;"
            " write tcp:127.0.0.1:PORT"
        )
    if port >= 1 << 16:
        raise UsageError(f"QMP address tcp:{host}:{port}: a port is at most 65535")
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    try:
        listening = socket.create_server((str(ip), port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise SourceError(f"QMP address tcp:{host}:{port}: {error.strerror}") from error
    port = listening.getsockname()[1]
    return Listener(listening, f"tcp:{ip}:{port}" if ip.version == 4 else f"tcp:[{ip}]:{port}")


def _listen_unix(path: str) -> Listener:
    if not 0 < len(os.fsencode(path)) <= _UNIX_PATH_MAX or "\0" in path:
        raise UsageError(
            f"QMP address unix:{path[:120]}: a unix socket's path has 1 to {_UNIX_PATH_MAX} bytes"
        )
    with ExitStack() as undo:
        try:
            # By its descriptor: nobody can put another folder in its place meanwhile.
            folder, name = place_of(path)
            undo.callback(os.close, folder)
            here = f"/proc/self/fd/{folder}/{name}"
            listening = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            _remove_stale(path, folder, name)
            mask = os.umask(0o177)
            try:
                listening.bind(here)
            finally:
                os.umask(mask)
            inode = os.lstat(here).st_ino
            listening.listen(_BACKLOG)
        except OSError as error:
            raise SourceError(f"QMP address unix:{path}: {error.strerror}") from error
        undo.pop_all()
    return Listener(listening, f"unix:{path}", (folder, name, inode))


def _remove_stale(path: str, folder: int, name: str) -> None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SourceError(f"QMP address unix:{path}: the file is there and is not a socket")
    if not is_trusted(status.st_uid):
        raise SourceError(f"QMP address unix:{path}: the socket there is another user's")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ALIVE_TIMEOUT_S)
        try:
            probe.connect(f"/proc/self/fd/{folder}/{name}")
        except ConnectionRefusedError:
            os.unlink(name, dir_fd=folder)
            return
        except TimeoutError:
            pass  # somebody is there, and busy
    raise SourceError(f"QMP address unix:{path}: a running process serves it; choose another path")
