# SPDX-License-Identifier: MIT
"""Waits until its parent is gone, then gives tracked memory of another process back.

Started as ``python -m pysampler.tracking.guardian FD ADDRESS:LENGTH...`` with a pipe from its
parent as stdin.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

from pysampler import core


def main(fd: int, ranges: list[core.Range]) -> None:
    """Wait for the end of stdin, then unregister the ranges of a userfaultfd."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for memory in ranges:
        with suppress(OSError):
            core.uffd_unregister(fd, memory)


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        [
            core.Range(int(address), int(length), first_bit=0)
            for address, _, length in (text.partition(":") for text in sys.argv[2:])
        ],
    )
