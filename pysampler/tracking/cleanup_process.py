# SPDX-License-Identifier: MIT
"""The cleanup process: unregisters tracked memory of another process where its tracker cannot.

`pysampler.host.child` starts it, with the argument ``FD``. Its stdin is a socket to the tracker,
which sends the ranges. It lets the guest go in three cases: the tracker has ended; the tracker asks
for it; or the tracker has sent signs of life and then sends none for `SILENCE_S`, so it is stopped.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from contextlib import suppress

from pysampler import core
from pysampler.core import CLEANUP_BEAT_S, CLEANUP_LET_GO
from pysampler.tracking.cleanup import READY, SILENCE_S, STOPPED


def main(fd: int, tracker: socket.socket) -> None:
    """Wait until the guest is to be let go, then unregister the memory of a userfaultfd."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with tracker.makefile("rb", buffering=0) as lines:
        ranges = [core.Range(*numbers) for numbers in json.loads(lines.readline())]
    tracker.sendall(READY)
    if _falls_silent(tracker):
        # First: what is written from now on is not seen, so the tracker must not count on.
        with suppress(OSError):
            tracker.send(STOPPED, socket.MSG_DONTWAIT)
    for memory in ranges:
        with suppress(OSError):
            core.uffd_unregister(fd, memory)


def _falls_silent(tracker: socket.socket) -> bool:
    """Return True when beats have ceased, False when the tracker has ended or has asked."""
    # Silence is counted by waits: where all processes stand still together, so does the count.
    n_silent, beats = 0, False
    while n_silent * CLEANUP_BEAT_S < SILENCE_S:
        if not select.select([tracker], [], [], CLEANUP_BEAT_S if beats else None)[0]:
            n_silent += 1
            continue
        try:
            message = tracker.recv(4096)
        except OSError:
            message = b""
        if not message or CLEANUP_LET_GO in message:
            return False
        n_silent, beats = 0, True
    return True


if __name__ == "__main__":
    main(int(sys.argv[1]), socket.socket(fileno=os.dup(0)))
