# SPDX-License-Identifier: MIT
"""Where a result goes: stdout, or a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from typing import TYPE_CHECKING

from pysampler.cli.streams import STDOUT, put, writing
from pysampler.errors import PysamplerError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self


class Output:
    """Takes one text for stdout or for a file, or bytes for a file.

    The file is made ready before the work begins, so that an unwritable path is known
    before a minute of measuring and not after it; the old file stays until `write`.

    Args:
        path: the file; None for stdout.

    Raises:
        UsageError: the path is empty.
        PysamplerError: the path cannot be written.
    """

    def __init__(self, path: str | None) -> None:
        if path == "":
            raise UsageError("--output: the name of the file is empty")
        self._path = None if path == "/dev/stdout" else path
        self._target = ""
        self._draft: str | None = None
        self._fd = -1
        if self._path is None:
            return
        with writing(self._path):
            if self._path == "/dev/stderr":
                self._fd = os.dup(2)  # as a shell does: not every descriptor can be opened again
            elif _is_special(self._path):
                self._fd = _open_special(self._path)
            else:
                self._make_draft(os.path.realpath(self._path))

    def _make_draft(self, target: str) -> None:
        try:
            status = os.stat(target)
        except FileNotFoundError:
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        else:
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, "is a directory")
            mode = stat.S_IMODE(status.st_mode)
        # Not by the target's name, which may be as long as a name can be.
        self._fd, self._draft = tempfile.mkstemp(prefix=".pysampler-", dir=os.path.dirname(target))
        self._target = target
        os.fchmod(self._fd, mode)

    def write(self, text: str) -> None:
        """Put the text where it belongs, or else on stdout: it took a while to get.

        Raises:
            BrokenPipeError: nobody reads stdout.
            PysamplerError: it could not be written where it belongs.
        """
        if self._path is None:
            put(text, end="")
            return
        try:
            self._write(text.encode())
        except OSError as error:
            why = f"cannot write {self._path}: {error.strerror}"
            with contextlib.suppress(OSError, PysamplerError):
                put(text, end="")
                why += f"; so it is on {STDOUT}"
            raise PysamplerError(why) from error

    def write_bytes(self, data: bytes) -> None:
        """Put bytes into the file: a picture, which no terminal should get instead.

        Raises:
            PysamplerError: it could not be written.
        """
        try:
            self._write(data)
        except OSError as error:
            raise PysamplerError(f"cannot write {self._path}: {error.strerror}") from error

    def _write(self, data: bytes) -> None:
        fd, self._fd = self._fd, -1
        with open(fd, "wb") as file:
            file.write(data)
        if self._draft is not None:
            os.replace(self._draft, self._target)
            self._draft = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            if self._fd >= 0:
                os.close(self._fd)
        if self._draft is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._draft)


def _is_special(path: str) -> bool:
    """Return whether a path leads to a device or a FIFO, which must never be replaced."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _open_special(path: str) -> int:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(path).st_mode):
            raise PysamplerError(f"cannot write {path}: nobody reads this FIFO") from error
        raise
    os.set_blocking(fd, True)
    return fd
