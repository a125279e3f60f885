# SPDX-License-Identifier: MIT
"""The tracker's side of its cleanup process; see pysampler.tracking.cleanup_process."""

from __future__ import annotations

import json
import select
import socket
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from pysampler.errors import SourceError
from pysampler.host.child import module_command

if TYPE_CHECKING:
    from pysampler.core import Range

SILENCE_S = 2  # after so long without a sign of life of the tracker the guest is let go
READY = b"r"
STOPPED = b"s"  # the guest has been let go, for the tracker was silent

START_S = 30  # how long it may take to start
END_S = 5  # how long it may take to end; what it would give back, the tracker has given back


class Cleanup:
    """A process that unregisters the tracked memory where this process cannot.

    When this process ends, the kernel does not unregister the memory, because the target still has
    the borrowed userfaultfd open. A write that waits for an answer would then wait for ever.

    Attributes:
        process: the process; it has a return code after `close`.

    Args:
        fd: the userfaultfd.
        ranges: the memory that is going to be registered.

    Raises:
        SourceError: it cannot be started.
    """

    def __init__(self, fd: int, ranges: list[Range]) -> None:
        self._socket, other = socket.socketpair()
        try:
            with other:
                self.process = _start(fd, other)
        except (OSError, ValueError) as error:
            self._socket.close()
            raise SourceError(f"{_CANNOT_START}: {error}") from error
        try:
            self._socket.settimeout(START_S)
            self._socket.sendall(json.dumps(ranges).encode("ascii") + b"\n")
            ready = self._socket.recv(1) == READY
        except OSError:
            ready = False
        if not ready:
            self.close()
            raise SourceError(f"{_CANNOT_START}: it ended, or did nothing for {START_S} s")

    @property
    def fd(self) -> int:
        """The socket. It can be read from when the process has let the guest go, or has ended."""
        return self._socket.fileno()

    def why_lost(self) -> str | None:
        """Return why the memory is tracked no more, or None while it is."""
        polled = select.poll()  # select() knows no descriptors from 1024 on
        polled.register(self._socket, select.POLLIN)
        if not polled.poll(0):
            return None
        message = b""
        with suppress(OSError):
            message = self._socket.recv(1, socket.MSG_PEEK)
        if message == STOPPED:
            return f"this process was stopped for longer than {SILENCE_S} s; the guest was let go"
        return "its cleanup process has ended, without which a guest could be left standing"

    def close(self) -> None:
        """End it."""
        self._socket.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:  # stopped, say
            self.process.kill()
            self.process.wait()


_CANNOT_START = "the cleanup process, without which nothing is tracked, cannot be started"


def _start(fd: int, tracker: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        module_command("pysampler.tracking.cleanup_process", str(fd)),
        stdin=tracker.fileno(),
        # Neither is to be held open by what outlives the tracker.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[fd],
        start_new_session=True,  # Ctrl-C and Ctrl-Z must not reach it
    )
