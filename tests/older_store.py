"""A store of `validate` as pysampler made it when a row was JSON text in one column."""

import sqlite3
from contextlib import closing
from pathlib import Path

OLDER_STORE = Path(__file__).parent / "golden" / "validation-store-1.sql"


def make_older_store(path):
    """Make the file at ``path``."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(OLDER_STORE.read_text())
