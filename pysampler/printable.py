# SPDX-License-Identifier: MIT
"""Make names of others' files, processes and blocks safe to show."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return the text with escapes for control characters and what cannot be encoded."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def encodable(text: str) -> str:
    """Return the text with escapes for bytes that are no Unicode, as in a file's name.

    JSON may not have it: Python writes it, and other readers refuse it.
    """
    return text.encode(errors="backslashreplace").decode()
