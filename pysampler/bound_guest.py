# SPDX-License-Identifier: MIT
"""A ``pysampler guest`` that the kernel ends when its parent is gone, also by SIGKILL.

Process PARENT starts it through `pysampler.host.child`, with the arguments ``PARENT guest ...``.

It is no part of ``guest/``: it runs the whole command. So it imports from the highest room, which
``guest/`` may not. `pysampler.guest.process` starts it by its name and imports nothing of it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from pysampler.__main__ import main

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def bind(parent: int) -> None:
    """Let SIGKILL end this process when its parent's thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        sys.exit(1)


if __name__ == "__main__":
    bind(int(sys.argv.pop(1)))
    sys.exit(main())
