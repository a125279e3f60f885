# SPDX-License-Identifier: MIT
"""Hot pages that the samples can have missed, or that could not be read.

n samples miss a share x of the pages with a chance of (1 - x)^n. The exact interval of a binomial
share (C. J. Clopper and E. S. Pearson, 1934) has its lower end at the number of dirty samples that
were seen. Its upper end is that of one dirty sample more. So a member has either no more pages, or
as many as one more sample stands for: a draw of the standard exponential distribution. Nothing is
known of their rate, because a sample of such a page would have been seen dirty at any rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pysampler.core import PRECOPY_COMPONENTS, ComponentKind
from pysampler.prediction.curve import COLDEST, Component, DirtyCurve, merged

if TYPE_CHECKING:
    from pysampler.prediction.curve import Counts

# Of the members that have missed pages, where none was seen dirty.
_SOME = 0.75
# The more dirty samples there are, the less likely is there a writer of which none was met; with so
# many half as likely.
_HALF = 8.0
_HOTTEST = 1000.0  # writes of a page per second: each ms one; more is no different to a migration


def share_with_missed(dirty: float) -> float:
    """Return the share of the members with missed pages, by the number of dirty samples."""
    return _SOME / (1 + dirty / _HALF)


def with_unseen(
    members: list[DirtyCurve], counts: Counts, rng: np.random.Generator
) -> list[DirtyCurve]:
    """Return the members with pages that are written but were not seen so.

    Args:
        members: fitted to resampled vectors.
        counts: of the vector itself.
        rng: random numbers.
    """
    n = len(members)
    # Evenly spread and then shuffled: the same as random, with less noise.
    even = (np.arange(n) + 0.5) / n
    some = share_with_missed(counts.dirty.max())
    missed = np.maximum(0.0, np.log(some / (1 - rng.permutation(even))))
    last = counts.seconds[-1]
    coldest = COLDEST / last
    rates = coldest * (_HOTTEST / coldest) ** rng.permutation(even)
    # Of cold ones there are more than would have been seen by the end.
    pages = missed * counts.scale / -np.expm1(-rates * last)
    # Any share of what could not be read, too.
    pages += rng.permutation(even) * counts.unreadable * counts.scale
    return [
        _with_component(member, more, rate)
        for member, more, rate in zip(members, pages, rates, strict=True)
    ]


def _with_component(curve: DirtyCurve, pages: float, rate: float) -> DirtyCurve:
    """Return a curve with one more random component; without room, taken from the others."""
    total = curve.nonzero_pages + curve.zero_pages
    pages = min(pages, total)
    if pages <= 0:
        return curve
    knots = curve.knots_pages[-1] if curve.interpolated else 0.0
    written = knots + sum(component.pages for component in curve.components)
    left = min(1.0, (total - pages) / written) if written else 1.0
    components = [
        replace(component, pages=component.pages * left)
        for component in curve.components
        if left > 0
    ]
    nonzero = max(curve.nonzero_pages, written * left + pages)
    return replace(
        curve,
        components=merged(
            [*components, Component(pages, rate, ComponentKind.RANDOM)],
            PRECOPY_COMPONENTS - int(curve.interpolated),
        ),
        knots_pages=tuple(left * each for each in curve.knots_pages),
        nonzero_pages=nonzero,
        zero_pages=total - nonzero,
    )
