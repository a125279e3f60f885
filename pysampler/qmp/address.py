# SPDX-License-Identifier: MIT
"""Where the server listens: a unix socket of its user's alone, or loopback TCP. Nothing else."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import stat
from dataclasses import dataclass

from pysampler.errors import SourceError, UsageError

_TCP = re.compile(r"tcp:(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):([0-9]{1,5})", re.ASCII)
_UNIX_PATH_MAX = 107  # bytes; sun_path of unix(7) without its last
_BACKLOG = 16
_ALIVE_TIMEOUT_S = 1.0


@dataclass
class Listener:
    """A listening socket that is not in anybody else's reach.

    Attributes:
        socket: it listens.
        address: ``unix:PATH`` or ``tcp:HOST:PORT``, with the real port.
    """

    socket: socket.socket
    address: str
    _file: tuple[str, int] | None = None  # path and inode

    def close(self) -> None:
        """Close the socket and remove its file; a second call does nothing."""
        self.socket.close()
        if self._file is None:
            return
        path, inode = self._file
        self._file = None
        try:
            # Somebody may have taken it for a stale one and put their own in its place.
            if os.lstat(path).st_ino == inode:
                os.unlink(path)
        except FileNotFoundError:
            pass


def listen(address: str) -> Listener:
    """Listen at ``unix:PATH`` or ``tcp:HOST:PORT`` (port 0: any).

    The file of a unix socket has mode 0600 from its first moment. The file that a dead server
    left behind is replaced.

    Raises:
        UsageError: the address is neither, or not a loopback one.
        SourceError: it cannot be had; a live server has it, for example.
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
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        mask = os.umask(0o177)
        try:
            listening.bind(path)
        finally:
            os.umask(mask)
        inode = os.lstat(path).st_ino
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise SourceError(f"QMP address unix:{path}: {error.strerror}") from error
    except SourceError:
        listening.close()
        raise
    return Listener(listening, f"unix:{path}", (path, inode))


def _remove_stale(path: str) -> None:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise SourceError(f"QMP address unix:{path}: the file is there and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_ALIVE_TIMEOUT_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except TimeoutError:
            pass  # somebody is there, and busy
    raise SourceError(f"QMP address unix:{path}: a running process serves it; choose another path")
