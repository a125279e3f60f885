# SPDX-License-Identifier: MIT
"""The tables of the store: a column for each figure. Tables of older files are read, too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from pysampler.validation.row import Row

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_VERSION = 2
_EMPTY = 0  # what SQLite says of a file without tables

_TABLES = (
    """
    CREATE TABLE IF NOT EXISTS runs (
        id INTEGER PRIMARY KEY,
        started INTEGER NOT NULL,   -- seconds since the epoch
        -- Facts about the machine; NULL: not known.
        cpu TEXT,
        cpus INTEGER,
        virtual INTEGER,            -- 0 or 1
        governor TEXT,
        last_level_cache INTEGER,   -- bytes
        memory INTEGER,             -- bytes
        kernel TEXT,
        python TEXT,
        simd TEXT,
        zlib TEXT,
        pysampler TEXT
    )
    """,
    # The members of Row, which says what they are.
    """
    CREATE TABLE IF NOT EXISTS rows (
        run INTEGER NOT NULL REFERENCES runs (id),
        workload TEXT NOT NULL,
        size INTEGER NOT NULL,
        calc_time_ms INTEGER NOT NULL,
        method TEXT NOT NULL,
        repeat INTEGER NOT NULL,
        sample_pages INTEGER NOT NULL,
        asked_wps INTEGER NOT NULL,
        idle_wps REAL NOT NULL,
        seconds REAL NOT NULL,
        writes INTEGER NOT NULL,
        baseline_seconds REAL NOT NULL,
        baseline_writes INTEGER NOT NULL,
        compare_seconds REAL NOT NULL,
        compare_writes INTEGER NOT NULL,
        n_sampled_pages INTEGER NOT NULL,
        n_dirty_pages INTEGER NOT NULL,
        truth_pages INTEGER NOT NULL,
        truth_writes INTEGER NOT NULL,
        tracking TEXT NOT NULL
    )
    """,
    "CREATE INDEX IF NOT EXISTS rows_of_run ON rows (run)",
)
# As `pysampler.host.machine.facts` names them; a column has underscores instead of hyphens.
_FACTS = (
    "cpu", "cpus", "virtual", "governor", "last-level-cache", "memory", "kernel", "python", "simd",
    "zlib", "pysampler",
)  # fmt: skip
_MEMBERS = tuple(field.name for field in fields(Row))
_LATEST = 1 << 36  # seconds since the epoch: no run is from the year 4000
_ALL = -1  # SQLite's LIMIT that is none


@dataclass(frozen=True)
class Run:
    """A stored run.

    Attributes:
        number: its number in the store.
        started: seconds since the epoch.
        machine: as `pysampler.host.machine.facts` gives it, without what is not known.
        rows: its rows.
    """

    number: int
    started: int
    machine: dict[str, Any]
    rows: tuple[Row, ...]


def are_known(connection: sqlite3.Connection) -> bool:
    """Return whether a file's tables can be read, or there are none yet."""
    version = _version_of(connection)
    return version == _EMPTY or version in _READERS


def bring_up(connection: sqlite3.Connection) -> None:
    """Make the tables, or bring those of an older file to the present form.

    The caller holds a transaction that writes.

    Raises:
        ValueError: an older file holds what pysampler never wrote.
        sqlite3.Error: as SQLite says.
    """
    old = []
    if _version_of(connection) == 1:
        old = list(_runs_1(connection, _ALL))
        connection.execute("DROP TABLE rows")
        connection.execute("DROP TABLE runs")
    for statement in _TABLES:
        connection.execute(statement)
    for run in old:
        insert(connection, run.started, run.machine, run.rows, number=run.number)
    connection.execute(f"PRAGMA user_version = {_VERSION}")


def insert(
    connection: sqlite3.Connection,
    started: int,
    machine: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    number: int | None = None,
) -> int:
    """Insert a run.

    Args:
        connection: of a file with present tables.
        started: seconds since the epoch.
        machine: facts about it. Those without a column are left out.
        rows: of the run.
        number: of the run; None for the next one.

    Returns:
        The run's number.
    """
    values = (number, started, *(machine.get(fact) for fact in _FACTS))
    cursor = connection.execute(_insertion("runs", ("id", "started", *_columns(_FACTS))), values)
    number = cursor.lastrowid or 0
    connection.executemany(
        _insertion("rows", ("run", *_MEMBERS)), [(number, *asdict(row).values()) for row in rows]
    )
    return number


def last(connection: sqlite3.Connection, n: int) -> list[Run]:
    """Return the last ``n`` runs of a file whose tables are known, the oldest of them first.

    Raises:
        ValueError: a run is none that pysampler wrote.
        sqlite3.Error: as SQLite says.
    """
    version = _version_of(connection)
    if version == _EMPTY:
        return []
    return sorted(_READERS[version](connection, n), key=lambda run: run.number)


def _version_of(connection: sqlite3.Connection) -> int:
    """Return the version of a file's tables; `_EMPTY` when it has none."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _columns(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name.replace("-", "_") for name in names)


def _insertion(table: str, columns: Sequence[str]) -> str:
    places = ", ".join("?" * len(columns))
    # The names are those of this file and of Row: nothing of them was read.
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})"  # noqa: S608


def _named(cursor: sqlite3.Cursor) -> Iterator[dict[str, Any]]:
    """Yield each line that was found, by its columns' names with hyphens."""
    names = [name.replace("_", "-") for name, *_ in cursor.description]
    for line in cursor:
        yield dict(zip(names, line, strict=True))


def _runs_2(connection: sqlite3.Connection, n: int) -> Iterator[Run]:
    runs = connection.execute(
        """
        SELECT id, started, cpu, cpus, virtual, governor, last_level_cache, memory, kernel, python,
            simd, zlib, pysampler
        FROM runs ORDER BY id DESC LIMIT ?
        """,
        (n,),
    )
    for number, started, *values in runs:
        machine = dict(zip(_FACTS, values, strict=True))
        if machine["virtual"] is not None:
            machine["virtual"] = bool(machine["virtual"])
        rows = connection.execute("SELECT * FROM rows WHERE run = ? ORDER BY rowid", (number,))
        yield _checked(number, started, machine, map(Row.from_dict, _named(rows)))


def _runs_1(connection: sqlite3.Connection, n: int) -> Iterator[Run]:
    """Yield runs of the first version, which kept the machine and each row as JSON text."""
    runs = connection.execute(
        "SELECT id, started, machine FROM runs ORDER BY id DESC LIMIT ?", (n,)
    )
    for number, started, machine in runs:
        rows = connection.execute("SELECT row FROM rows WHERE run = ? ORDER BY rowid", (number,))
        measured = (Row.from_dict(json.loads(text)) for (text,) in rows)
        yield _checked(number, started, json.loads(machine), measured)


def _checked(number: int, started: int, machine: object, rows: Iterable[Row]) -> Run:
    """Return a run that was read.

    Raises:
        ValueError: it is none that pysampler wrote.
    """
    rows = tuple(rows)
    if not isinstance(machine, dict) or not 0 <= started < _LATEST or not rows:
        raise ValueError(f"run {number} is none of pysampler")
    facts = {fact: value for fact, value in machine.items() if value is not None}
    return Run(number, started, facts, rows)


_READERS: dict[int, Callable[[sqlite3.Connection, int], Iterator[Run]]] = {1: _runs_1, 2: _runs_2}
