# SPDX-License-Identifier: MIT
"""The guests that could have given the vector: a bootstrap of its samples, each fitted anew.

Each sample is in one of these classes: zero, found dirty first in the i-th period, or clean to
the end. Their numbers are multinomial, so a member draws them anew (B. Efron,
"Bootstrap methods: another look at the jackknife", 1979). Where few samples were dirty, a member
draws from the Dirichlet distribution of their counts (D. B. Rubin, "The Bayesian bootstrap",
1981), so that each dirty sample is in every member. Pages that the samples missed are added
(unseen.py). The vector does not tell how far sequential writers and bursts are when the migration
starts; that is drawn as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler import core
from pysampler.prediction.curve import Counts, DirtyCurve, choose_fitter, fit_curve
from pysampler.prediction.unseen import with_unseen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pysampler.vector.intervals import FloatArray
    from pysampler.vector.measurement import Measurement


_MANY = 100  # dirty samples, from which on the two bootstraps are the same


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """Guests as the C core takes them.

    Attributes:
        curve: fitted to the vector itself.
        members: fitted to the resampled vectors, with pages that those missed.
        page_size: bytes.
        guests: core.PRECOPY_GUEST, one per member.
        components: core.PRECOPY_COMPONENT, members x components.
        knots_ms: times of interpolated points, the same for all members.
        knots_share: shares of the written pages that are dirty then, members x knots.
    """

    curve: DirtyCurve
    members: tuple[DirtyCurve, ...]
    page_size: int
    guests: NDArray[Any]
    components: NDArray[Any]
    knots_ms: FloatArray
    knots_share: FloatArray

    @property
    def arrays(self) -> core.PrecopyGuests:
        """The members as the C core takes them."""
        return core.PrecopyGuests(self.guests, self.components, self.knots_ms, self.knots_share)

    def part(self, first: int, end: int) -> Ensemble:
        """Return the members from one to before another."""
        some = slice(first, end)
        return replace(
            self,
            members=self.members[some],
            guests=self.guests[some],
            components=self.components[some],
            knots_share=self.knots_share[some],
        )


def resample(counts: Counts, n_members: int, rng: np.random.Generator) -> list[Counts]:
    """Return the expected vectors of guests that could have given this one."""
    first_dirty = np.diff(np.maximum.accumulate(counts.dirty), prepend=0.0)
    if counts.exact:
        return [counts] * n_members
    clean = max(0.0, counts.sampled - counts.zero - first_dirty.sum())
    classes = np.array([*first_dirty, clean, counts.zero], dtype=np.float64)
    if first_dirty.sum() > _MANY:
        draws = rng.multinomial(counts.sampled, classes / classes.sum(), size=n_members) * 1.0
    else:
        draws = rng.gamma(classes, size=(n_members, len(classes)))
        draws *= counts.sampled / draws.sum(axis=1, keepdims=True)
    fallen = counts.dirty - np.maximum.accumulate(counts.dirty)
    return [
        replace(
            counts,
            dirty=np.maximum(0.0, np.cumsum(draw[:-2]) + fallen),
            zero=float(draw[-1]),
        )
        for draw in draws
    ]


def build_ensemble(measurement: Measurement, n_members: int, seed: int) -> Ensemble:
    """Fit a measurement and its resampled likes.

    Args:
        measurement: the vector.
        n_members: how many to resample.
        seed: of the random numbers; the same seed gives the same ensemble.

    Raises:
        FormatError: the vector cannot be predicted from.
    """
    counts = Counts.of(measurement)
    choice = choose_fitter(counts)
    curve = fit_curve(counts, choice)
    rng = np.random.default_rng(seed)
    # Where every page was looked at, nothing is drawn.
    luck = None if counts.exact else np.random.default_rng([seed, 2])
    members = [fit_curve(other, choice, luck) for other in resample(counts, n_members, rng)]
    if luck:
        members = with_unseen(members, counts, luck)
    return assemble(curve, members, measurement, rng)


def assemble(
    curve: DirtyCurve,
    members: Sequence[DirtyCurve],
    measurement: Measurement,
    rng: np.random.Generator,
) -> Ensemble:
    """Return fitted curves as the arrays of the C core."""
    guests = np.zeros(len(members), dtype=core.PRECOPY_GUEST)
    guests["nonzero_pages"] = [member.nonzero_pages for member in members]
    guests["zero_pages"] = [member.zero_pages for member in members]
    # Evenly spread and then shuffled: the same as random, with less noise.
    guests["phase"] = rng.permutation(len(members)) / max(1, len(members))
    if curve.burst:
        bursts = [member.burst or curve.burst for member in members]
        guests["burst_period_ms"] = [burst.period_s * 1000 for burst in bursts]
        guests["burst_on_ms"] = [burst.on_s * 1000 for burst in bursts]
        guests["burst_phase_ms"] = rng.permutation(guests["phase"]) * guests["burst_period_ms"]
    # An idle host was seen to take 15 % more or less from one migration to the next.
    spread = (rng.permutation(len(members)) + 0.5) / max(1, len(members))
    guests["zero_page_factor"] = 0.85 + 0.3 * spread
    knots_s = np.asarray(curve.knots_s)
    # Interpolated points are a component of their own, before the others.
    n_tables = int(curve.interpolated)
    n_components = n_tables + max((len(member.components) for member in members), default=0)
    components = np.zeros((len(members), n_components), dtype=core.PRECOPY_COMPONENT)
    for row, member in zip(components, members, strict=True):
        for entry, component in zip(row[n_tables:], member.components, strict=False):
            entry["pages"], entry["rate"] = component.pages, component.rate / 1000
            entry["kind"] = component.kind
    shares = np.zeros((len(members), len(knots_s)))
    if curve.interpolated:
        points = np.asarray(
            [np.interp(knots_s, (0.0, *one.knots_s), (0.0, *one.knots_pages)) for one in members]
        )
        components["pages"][:, 0] = np.maximum(points[:, -1], 1e-9)
        components["kind"][:, 0] = core.ComponentKind.TABLE
        shares = points / components["pages"][:, :1]
    return Ensemble(
        curve,
        tuple(members),
        measurement.page_size,
        guests,
        components,
        knots_s * 1000,
        shares,
    )
