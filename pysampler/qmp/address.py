# SPDX-License-Identifier: MIT
"""The server's address: a unix socket for its user alone, or loopback TCP. Nothing else."""

from __future__ import annotations

import os
import re

from pysampler.errors import SourceError, UsageError
from pysampler.host.listener import UNIX_PATH_MAX, Listener, listen_tcp, listen_unix, loopback

_TCP = re.compile(r"tcp:(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):([0-9]{1,5})", re.ASCII)


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
    ip = loopback(host)
    if ip is None:
        raise UsageError(
            f"QMP address tcp:{host}:{port}: QMP has no password, so only loopback is served;"
            " write tcp:127.0.0.1:PORT"
        )
    if port >= 1 << 16:
        raise UsageError(f"QMP address tcp:{host}:{port}: a port is at most 65535")
    try:
        return listen_tcp(ip, port)
    except OSError as error:
        raise SourceError(f"QMP address tcp:{host}:{port}: {error.strerror}") from error


def _listen_unix(path: str) -> Listener:
    if not 0 < len(os.fsencode(path)) <= UNIX_PATH_MAX or "\0" in path:
        raise UsageError(
            f"QMP address unix:{path[:120]}: a unix socket's path has 1 to {UNIX_PATH_MAX} bytes"
        )
    try:
        return listen_unix(path)
    except OSError as error:
        raise SourceError(f"QMP address unix:{path}: {error.strerror}") from error
