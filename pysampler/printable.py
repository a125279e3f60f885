# SPDX-License-Identifier: MIT
"""Names of others' files, processes and blocks, as they may be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with what could move the cursor or not be encoded as an escape."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def encodable(text: str) -> str:
    """Return the text with what is no Unicode, as of a file's name, as an escape.

    JSON may not have it: Python writes it, and other readers refuse it.
    """
    return text.encode(errors="backslashreplace").decode()
