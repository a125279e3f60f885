# SPDX-License-Identifier: MIT
"""Where a result goes: stdout, or a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from typing import TYPE_CHECKING

from pysampler.errors import PysamplerError

if TYPE_CHECKING:
    from typing_extensions import Self


class Output:
    """Takes one text for stdout or for a file.

    The file is made ready before the work begins, so that an unwritable path is known
    before a minute of measuring and not after it; the old file stays until `write`.

    Args:
        path: the file; None for stdout.

    Raises:
        PysamplerError: the path cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        self._target = None if path is None else os.path.realpath(path)
        self._draft: str | None = None
        if self._target is None or self._is_special():
            return
        folder, name = os.path.split(self._target)
        try:
            if os.path.isdir(self._target):
                raise IsADirectoryError(21, "is a directory", self._target)
            fd, self._draft = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            os.fchmod(fd, self._mode())
            os.close(fd)
        except OSError as error:
            raise _cannot_write(path, error) from error

    def _is_special(self) -> bool:
        """Return whether the target is a device or a FIFO, which must never be replaced."""
        try:
            mode = os.stat(self._target or "").st_mode
        except OSError:
            return False
        return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)

    def _mode(self) -> int:
        try:
            return stat.S_IMODE(os.stat(self._target or "").st_mode)
        except FileNotFoundError:
            umask = os.umask(0)
            os.umask(umask)
            return 0o666 & ~umask

    def write(self, text: str) -> None:
        """Put the text where it belongs.

        Raises:
            PysamplerError: it could not be written.
        """
        try:
            if self._target is None:
                sys.stdout.write(text)
                sys.stdout.flush()
                return
            with open(self._draft or self._target, "w", encoding="utf-8") as file:
                file.write(text)
            if self._draft is not None:
                os.replace(self._draft, self._target)
                self._draft = None
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _cannot_write(self._target, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._draft)


def _cannot_write(path: str | None, error: OSError) -> PysamplerError:
    return PysamplerError(f"cannot write {path or 'standard output'}: {error.strerror}")
