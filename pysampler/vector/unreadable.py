# SPDX-License-Identifier: MIT
"""Causes of unreadable samples: their names in the vector, and words for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.core import PageState

if TYPE_CHECKING:
    from collections.abc import Mapping

# Keys of the vector's ``unreadable-causes``.
CAUSES = {
    PageState.SWAPPED: "swapped-out",
    PageState.FILE: "file-backed",
    PageState.USERFAULTFD: "userfaultfd",
    PageState.CLOSED: "closed",
}

_WORDS = {
    "swapped-out": "swapped out",
    "file-backed": "file-backed and never touched, in a file that could not be read",
    "userfaultfd": "under userfaultfd and not yet filled",
    "closed": "closed to reading",
}


def in_words(causes: Mapping[str, int]) -> str:
    """Return counts by cause as a list for people, the most frequent first.

    >>> in_words({"closed": 2, "swapped-out": 30})
    '30 swapped out, 2 closed to reading'
    """
    by_count = sorted(causes.items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {_WORDS[cause]}" for cause, count in by_count if cause in _WORDS)
