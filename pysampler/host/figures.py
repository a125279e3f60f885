# SPDX-License-Identifier: MIT
"""How a command loads matplotlib: nothing of the current folder has a say in it."""

from __future__ import annotations

import os
from importlib import import_module


def load_matplotlib() -> None:
    """Load matplotlib with its user's settings, without a ``matplotlibrc`` that lies here.

    It reads one of the current folder first, which may be anybody's while we are root, and can
    make it run LaTeX on a text of theirs. So it is loaded in another folder.
    """
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir("/")
        import_module("matplotlib")
    finally:
        os.fchdir(here)
        os.close(here)
