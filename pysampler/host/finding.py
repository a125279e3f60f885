# SPDX-License-Identifier: MIT
"""Finding: a thing that was tried on this machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one trial.

    Attributes:
        name: the thing that was tried.
        works: whether it worked.
        detail: the observation, or the reason why it does not work.
        cure: a way to make it work; empty where it works already or cannot work.
    """

    name: str
    works: bool
    detail: str
    cure: str = ""
