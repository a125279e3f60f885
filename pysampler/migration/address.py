# SPDX-License-Identifier: MIT
"""Where a migration goes or comes from: ``unix:PATH`` or ``tcp:HOST:PORT``, as QEMU has them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from pysampler.errors import UsageError
from pysampler.host.listener import UNIX_PATH_MAX, IpAddress, loopback

# QEMU has these as well; the emulated guest does not.
_MISSING = ("exec", "rdma", "vsock", "fd", "file")

_TCP = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):([^,]+)(,.*)?", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket.

    Attributes:
        path: of its file.
    """

    path: str

    @property
    def uri(self) -> str:
        """As ``migrate`` takes it."""
        return f"unix:{self.path}"

    def to_json(self) -> dict[str, str | bool]:
        """Return it as query-migrate shows it."""
        return {"path": self.path, "type": "unix"}

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port of this machine.

    Attributes:
        host: as it was written, without brackets.
        port: 0 to 65535; 0 for any that is free.
    """

    host: str
    port: int

    @property
    def ip(self) -> IpAddress:
        """What the host's name stands for."""
        ip = loopback(self.host)
        if ip is None:
            raise UsageError(f"{self}: no address of this machine's loopback interface")
        return ip

    @property
    def uri(self) -> str:
        """As ``migrate`` takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"

    def to_json(self) -> dict[str, str | bool]:
        """Return it as query-migrate shows it."""
        family = f"ipv{self.ip.version}"
        return {"port": str(self.port), family: True, "host": self.host, "type": "inet"}

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


def parse_uri(text: str) -> Address:
    """Return the address that a URI of ``migrate`` or ``migrate-incoming`` means.

    Raises:
        UsageError: it is none, with QEMU's own text; or QEMU has it and the emulated guest does
            not.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and text != "unix":
        return _parse_unix(rest)
    if scheme == "tcp" and text != "tcp":
        return _parse_tcp(rest)
    if scheme in _MISSING and text != scheme:
        raise UsageError(
            f"the emulated guest has no migration over {scheme}:; use unix:PATH or"
            " tcp:127.0.0.1:PORT"
        )
    raise UsageError(f"unknown migration protocol: {text[:120]}")


def _parse_unix(path: str) -> UnixAddress:
    if not path:
        raise UsageError("invalid Unix socket address")
    if len(os.fsencode(path)) > UNIX_PATH_MAX or "\0" in path:
        raise UsageError(
            f"UNIX socket path '{path[:120]}': a path has at most {UNIX_PATH_MAX} bytes"
        )
    return UnixAddress(path)


def _parse_tcp(rest: str) -> TcpAddress:
    match = _TCP.fullmatch(rest)
    if match is None:
        raise UsageError(f"error parsing address '{rest[:120]}'")
    host = match[1] or match[2]
    if match[4]:
        raise UsageError(f"tcp:{rest[:120]}: the emulated guest knows no options of an address")
    if not re.fullmatch("[0-9]{1,5}", match[3], re.ASCII) or int(match[3]) > 65535:
        raise UsageError(f"tcp:{rest[:120]}: a port is a number from 0 to 65535")
    if loopback(host) is None:
        raise UsageError(
            f"tcp:{rest[:120]}: a guest's RAM goes over this machine's loopback interface only;"
            " write tcp:127.0.0.1:PORT"
        )
    return TcpAddress(host, int(match[3]))
