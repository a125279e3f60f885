# SPDX-License-Identifier: MIT
"""The least of rising candidates that makes a migration likely enough, in few runs of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def least_candidate(
    p_of: Callable[[Sequence[float]], Sequence[float]],
    candidates: Sequence[float],
    strides: Sequence[int],
    p: float,
) -> float | None:
    """Return the least candidate with which p is reached; None where none reaches it.

    Args:
        p_of: probabilities of some candidates, which rise with them.
        candidates: rising; at least one.
        strides: of the search, falling to 1.
        p: what is wanted.
    """
    low, high = -1, len(candidates) - 1
    if p_of([candidates[high]])[0] < p:
        return None
    for stride in strides:
        probes = [i for i in range(0, high, stride) if i > low]
        found = p_of([candidates[i] for i in probes])
        reached = [i for i, each in zip(probes, found, strict=True) if each >= p]
        high = min(reached, default=high)
        low = max((i for i in probes if i < high), default=low)
    return candidates[high]


def remembering(
    p_of: Callable[[Sequence[float]], Sequence[float]],
) -> Callable[[Sequence[float]], Sequence[float]]:
    """Return the same function, which asks for no value twice."""
    known: dict[float, float] = {}

    def remembered(values: Sequence[float]) -> Sequence[float]:
        new = [value for value in values if value not in known]
        known.update(zip(new, p_of(new), strict=True) if new else ())
        return [known[value] for value in values]

    return remembered
