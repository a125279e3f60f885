# SPDX-License-Identifier: MIT
"""The destination of a result: stdout, or a file that appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from pysampler.cli.streams import STDOUT, put
from pysampler.errors import PysamplerError, UsageError
from pysampler.host.writer import Draft, is_trusted, place_of, writing

if TYPE_CHECKING:
    from typing_extensions import Self


class Output:
    """Takes one text for stdout or for a file, or bytes for a file.

    The file is prepared before the work begins, so that an unwritable path is reported before a
    minute of measuring and not after it. The old file stays until `write`.

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
        self._folder = self._fd = -1
        self._draft: Draft | None = None
        if self._path is None:
            return
        with writing(self._path):
            if self._path == "/dev/stderr":
                self._fd = os.dup(2)  # as a shell does: not every descriptor can be opened again
                return
            self._folder, name = place_of(self._path)
            try:
                if _is_special(self._folder, name):
                    self._fd = _open_special(self._folder, name, self._path)
                else:
                    self._draft = Draft(self._folder, name)
            except BaseException:
                self._close()
                raise

    def write(self, text: str) -> None:
        """Write the text to its destination, or to stdout if that fails: it took a while to get.

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
        """Write bytes, such as a picture, to the file; they never go to stdout instead.

        Raises:
            PysamplerError: it could not be written.
        """
        try:
            self._write(data)
        except OSError as error:
            raise PysamplerError(f"cannot write {self._path}: {error.strerror}") from error

    def _write(self, data: bytes) -> None:
        if self._draft is not None:
            self._draft.commit(data)
            return
        fd, self._fd = self._fd, -1
        with open(fd, "wb") as file:
            file.write(data)

    def _close(self) -> None:
        if self._draft is not None:
            self._draft.close()
        for fd in (self._fd, self._folder):
            with contextlib.suppress(OSError):
                if fd >= 0:
                    os.close(fd)
        self._folder = self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _is_special(folder: int, name: str) -> bool:
    """Return whether a name is a device's or a FIFO's, which must never be replaced."""
    try:
        mode = os.stat(name, dir_fd=folder).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _open_special(folder: int, name: str, path: str) -> int:
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    before = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISLNK(before.st_mode):  # else it is one of /proc, to what is open here
        flags |= os.O_NOFOLLOW
        # As the kernel has it for shells (fs.protected_fifos): it need not be who it seems to be.
        if stat.S_ISFIFO(before.st_mode) and not (
            is_trusted(before.st_uid) or before.st_uid == os.fstat(folder).st_uid
        ):
            raise PysamplerError(
                f"cannot write {path}: this FIFO belongs to another user (uid {before.st_uid})"
            )
    try:
        fd = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(name, dir_fd=folder).st_mode):
            raise PysamplerError(f"cannot write {path}: nobody reads this FIFO") from error
        raise
    os.set_blocking(fd, True)
    if not stat.S_ISLNK(before.st_mode) and not os.path.samestat(before, os.fstat(fd)):
        os.close(fd)
        raise PysamplerError(f"cannot write {path}: somebody has just replaced it")
    return fd
