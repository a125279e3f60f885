# SPDX-License-Identifier: MIT
"""Facts about a host that no vector holds, from real migrations: link, time for a zero page.

Both are cross-validated: each migration is predicted with the values of the others of its file.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pysampler.prediction.ensemble import assemble
from pysampler.prediction.precopy_model import migrate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pysampler.prediction.precopy_model import Precopy
    from pysampler.prediction.records import Migration
    from pysampler.vector.intervals import FloatArray

# Times that are tried; what was seen lies between 0.1 and 5 us.
_ZERO_PAGE_US = np.append(0.0, np.geomspace(0.05, 10, 108))  # 5 % apart
_MEMBERS = 8  # of a known guest: where its sequential writers are is drawn


def set_up(migrations: Sequence[Migration], precopy: Precopy) -> Iterator[Precopy]:
    """Yield how each migration was set up.

    Values that ``precopy`` leaves open come from the other migrations. The link has the median
    speed of their last passes. A zero page takes the time with which migrations of known guests
    have the least mean error.
    """
    known = [
        replace(precopy, deadline_ms=one.limit_ms, multifd=precopy.multifd or one.multifd)
        for one in migrations
    ]
    if precopy.link is None:
        links = [one.link or math.nan for one in migrations]
        known = [replace(setup, link=_median(np.delete(links, i))) for i, setup in enumerate(known)]
    if precopy.zero_page_us is not None:
        yield from known
        return
    errors = np.array([_errors(one, setup) for one, setup in zip(migrations, known, strict=True)])
    for setup, of_others in zip(known, errors.sum(axis=0) - errors, strict=True):
        yield replace(setup, zero_page_us=float(_ZERO_PAGE_US[of_others.argmin()]))


def _median(links: FloatArray) -> float | None:
    known = links[~np.isnan(links)]
    return float(np.median(known)) if len(known) else None


def _errors(migration: Migration, precopy: Precopy) -> FloatArray:
    """Return relative errors of the total time with each time for a zero page, 1 at most.

    None of it where the migration does not tell: it did not end, or its guest is not known.
    """
    if migration.guest is None or not migration.converged:
        return np.zeros(len(_ZERO_PAGE_US))
    vector = next(iter(migration.vectors.values()))
    one = assemble(migration.guest, [migration.guest] * _MEMBERS, vector, np.random.default_rng(0))
    # Each member once for each time, in a call.
    n_times = len(_ZERO_PAGE_US)
    ensemble = replace(
        one,
        guests=np.repeat(one.guests, n_times),
        components=np.repeat(one.components, n_times, axis=0),
        knots_share=np.repeat(one.knots_share, n_times, axis=0),
    )
    ensemble.guests["zero_page_factor"] *= np.tile(_ZERO_PAGE_US, _MEMBERS)
    cell = [(migration.bandwidth, migration.downtime_limit_ms)]
    outcomes = migrate(ensemble, replace(precopy, zero_page_us=1.0), cell)
    ends = np.where(outcomes["converged"] > 0, outcomes["total_ms"], np.inf)
    totals = np.median(ends.reshape(_MEMBERS, n_times), axis=0)
    return np.minimum(1.0, np.abs(totals / migration.total_ms - 1))
