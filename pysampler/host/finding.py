# SPDX-License-Identifier: MIT
"""Finding: a thing that was tried on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        name: what.
        works: whether it did.
        detail: what was seen, or why it does not work.
        cure: what makes it work; empty where it works or nothing would.
    """

    name: str
    works: bool
    detail: str
    cure: str = ""
