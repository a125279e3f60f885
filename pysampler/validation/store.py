# SPDX-License-Identifier: MIT
"""Where results are kept, so that runs can be compared: an SQLite file."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pysampler.errors import FormatError, PysamplerError
from pysampler.validation.row import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY,
    started INTEGER NOT NULL,   -- seconds since the epoch
    machine TEXT NOT NULL       -- JSON
);
CREATE TABLE IF NOT EXISTS rows (
    run INTEGER NOT NULL REFERENCES runs (id),
    row TEXT NOT NULL           -- JSON, as row.py makes it
);
CREATE INDEX IF NOT EXISTS rows_of_run ON rows (run);
"""
_VERSION = 1


def default_path() -> str:
    """Return where the store is when nobody says otherwise: the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "pysampler", "validation.sqlite")


@dataclass(frozen=True)
class Run:
    """A stored run.

    Attributes:
        number: its number in the store.
        started: seconds since the epoch.
        machine: as `pysampler.machine.facts` gives it.
        rows: its rows.
    """

    number: int
    started: int
    machine: dict[str, Any]
    rows: tuple[Row, ...]


class Store:
    """Runs in an SQLite file.

    Args:
        path: the file; made, with its folder, when it is not there.

    Raises:
        PysamplerError: it cannot be opened, or is something else.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
            self._connection = sqlite3.connect(path)
            with self._connection:
                version = self._connection.execute("PRAGMA user_version").fetchone()[0]
                if version not in {0, _VERSION}:
                    raise PysamplerError(f"{path} was made by another version of pysampler")
                self._connection.executescript(_SCHEMA)
                self._connection.execute(f"PRAGMA user_version = {_VERSION}")
        except (OSError, sqlite3.Error, ValueError) as error:  # ValueError: a path that is none
            raise PysamplerError(f"cannot use {path} as a store: {error}") from error

    def append(self, rows: Sequence[Row], machine: dict[str, Any]) -> int:
        """Store a run; return its number.

        Raises:
            PysamplerError: it could not be written.
        """
        try:
            with self._connection:
                cursor = self._connection.execute(
                    "INSERT INTO runs (started, machine) VALUES (?, ?)",
                    (int(time.time()), json.dumps(machine)),
                )
                number = cursor.lastrowid or 0
                self._connection.executemany(
                    "INSERT INTO rows (run, row) VALUES (?, ?)",
                    [(number, json.dumps(row.to_dict())) for row in rows],
                )
        except sqlite3.Error as error:
            raise PysamplerError(f"cannot write {self._path}: {error}") from error
        return number

    def last(self, n: int) -> list[Run]:
        """Return the last ``n`` runs, the oldest of them first.

        Raises:
            PysamplerError: the file cannot be read, or holds something else.
        """
        try:
            return sorted(self._runs(n), key=lambda run: run.number)
        except (sqlite3.Error, ValueError, TypeError, RecursionError, FormatError) as error:
            raise PysamplerError(f"cannot read {self._path}: {error}") from error

    def _runs(self, n: int) -> Iterator[Run]:
        with closing(
            self._connection.execute(
                "SELECT id, started, machine FROM runs ORDER BY id DESC LIMIT ?", (n,)
            )
        ) as cursor:
            found = cursor.fetchall()
        for number, started, machine in found:
            with closing(
                self._connection.execute("SELECT row FROM rows WHERE run = ?", (number,))
            ) as cursor:
                rows = tuple(Row.from_dict(json.loads(text)) for (text,) in cursor)
            facts = json.loads(machine)
            if not isinstance(facts, dict) or not rows or not 0 <= started < 1 << 40:
                raise FormatError(f"run {number} is not as `pysampler validate` stores it")
            yield Run(number, started, facts, rows)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
