# SPDX-License-Identifier: MIT
"""Keep results in an SQLite file, so that runs can be compared."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from pysampler.errors import FormatError, PysamplerError
from pysampler.host.writer import is_trusted, place_of, refuse_others
from pysampler.validation import stored_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pysampler.validation.row import Row
    from pysampler.validation.stored_runs import Run

PATIENCE_S = 5.0  # how long another process may have the file for itself
# What SQLite and JSON say to a file that somebody else wrote.
_MALFORMED = (sqlite3.Error, FormatError, ValueError, TypeError, OverflowError, RecursionError)


def default_path() -> str:
    """Return the default path of the store, in the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "pysampler", "validation.sqlite")


class Store:
    """Runs in an SQLite file.

    A file of an older pysampler is brought to the present form when it is opened to be changed. It
    is read as it is otherwise.

    Args:
        path: the file; made, with its folder, when it is not there.
        change: False to look at a file only, which must be there.

    Raises:
        PysamplerError: it cannot be opened, is something else, or could be another user's.
    """

    def __init__(self, path: str, *, change: bool = True) -> None:
        self._path = path
        with self._using("use", " as a store"), ExitStack() as stack:
            folder, name = place_of(path, make_folders=0o700 if change else None)
            stack.callback(os.close, folder)  # as long as SQLite makes its journals there
            _refuse_what_others_can_change(folder, name, path)
            if change:
                flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with suppress(FileExistsError):
                    os.close(os.open(name, flags, 0o666, dir_fd=folder))
            self._connection = sqlite3.connect(
                f"file:/proc/self/fd/{folder}/{quote(name)}?mode={'rw' if change else 'ro'}",
                uri=True,
                timeout=PATIENCE_S,
                isolation_level=None,  # transactions are begun and ended here
            )
            stack.callback(self._connection.close)
            # What somebody wrote into the file's schema is not run.
            self._connection.execute("PRAGMA trusted_schema = OFF")
            self._prepare(change=change)
            self._stack = stack.pop_all()

    def _prepare(self, *, change: bool) -> None:
        with self._transaction("IMMEDIATE" if change else "DEFERRED"):
            self._refuse_unknown_tables()
            if change:
                stored_runs.bring_up(self._connection)

    def _refuse_unknown_tables(self) -> None:
        if not stored_runs.are_known(self._connection):
            raise PysamplerError(f"{self._path} was made by another version of pysampler")

    @contextmanager
    def _transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"]) -> Iterator[None]:
        self._connection.execute(f"BEGIN {kind}")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    @contextmanager
    def _using(self, verb: str, what: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = error.strerror or error
            raise PysamplerError(f"cannot {verb} {self._path}{what}: {why}") from error
        except _MALFORMED as error:
            raise PysamplerError(f"cannot {verb} {self._path}{what}: {error}") from error

    def append(self, rows: Sequence[Row], machine: dict[str, Any]) -> int:
        """Store a run; return its number.

        Raises:
            PysamplerError: it could not be written; the file is as it was.
        """
        with self._using("write"), self._transaction("IMMEDIATE"):
            return stored_runs.insert(self._connection, int(time.time()), machine, rows)

    def last(self, n: int) -> list[Run]:
        """Return the last ``n`` runs, the oldest of them first.

        Raises:
            PysamplerError: the file cannot be read.
        """
        # Another process may bring the file to the present form: one view of it for all reads.
        with self._using("read"), self._transaction("DEFERRED"):
            self._refuse_unknown_tables()
            return stored_runs.last(self._connection, n)

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


def _refuse_what_others_can_change(folder: int, name: str, path: str) -> None:
    """Refuse a file of another user, or in a folder that another user can change.

    SQLite writes in place. It takes any journal beside the file for its own, and removes a file
    that the journal names. It also opens files by name, so nobody else may exchange a folder.
    """
    for suffix in ("", "-journal", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            beside = os.stat(name + suffix, dir_fd=folder, follow_symlinks=False)
            refuse_others(beside, path + suffix)
    for n_above, status in enumerate(_folders_up_from(folder)):
        which = "a folder above it" if n_above else "its folder"
        why = ""
        if not is_trusted(status.st_uid):
            why = f"{which} belongs to another user (uid {status.st_uid})"
        elif _others_can_change(status, sticky_helps=n_above > 0):
            why = f"anybody can write in {which}"
            if not status.st_mode & stat.S_IWOTH:
                why = f"a group of users (gid {status.st_gid}) can write in {which}"
        if why:
            raise PysamplerError(
                f"cannot use {path} as a store: {why}; name a file in a folder of yours with"
                " --store"
            )


def _folders_up_from(folder: int) -> Iterator[os.stat_result]:
    """Yield the status of a folder, and of each above it."""
    fd = os.dup(folder)
    try:
        below = None
        while below is None or not os.path.samestat(below, os.fstat(fd)):
            below = os.fstat(fd)
            yield below
            child, fd = fd, os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=fd)
            os.close(child)
    finally:
        os.close(fd)


def _others_can_change(status: os.stat_result, *, sticky_helps: bool) -> bool:
    """Return whether other users can put something into a folder.

    Args:
        status: of the folder.
        sticky_helps: whether it is enough that they cannot exchange what is there.
    """
    if sticky_helps and status.st_mode & stat.S_ISVTX:
        return False
    of_group = status.st_mode & stat.S_IWGRP and status.st_gid not in {os.getegid(), 0}
    return bool(status.st_mode & stat.S_IWOTH or of_group)
