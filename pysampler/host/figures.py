# SPDX-License-Identifier: MIT
"""Load matplotlib without settings from the current folder."""

from __future__ import annotations

import os
from importlib import import_module


def load_matplotlib() -> None:
    """Load matplotlib with its user's settings, without a ``matplotlibrc`` that lies here.

    matplotlib looks for that file in the current folder first. We may be root, and the folder
    may be anybody's: such a file can make matplotlib run LaTeX on its owner's text. So
    matplotlib is loaded in another folder.
    """
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir("/")
        import_module("matplotlib")
    finally:
        os.fchdir(here)
        os.close(here)
