# SPDX-License-Identifier: MIT
"""What limits the prediction of real migrations: the loop, the fit, or the vector's own noise.

Each row knows less of the guest than the one above it: all of it; all but how many pages are not
zero, which the vector tells; only which kinds of writers it has, whose pages and rates are those
of the greatest likelihood; nothing but the vector, which is what `pysampler predict` has. Where
the last two rows agree, a better fit would gain nothing: the error is that of the sample.

The same is done with vectors drawn anew from the known guest: a file has few vectors, and
how well those happen to fit decides its score. Seeded: the same table each time.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from pysampler.prediction.curve import Component, Counts, DirtyCurve, dirty_share
from pysampler.prediction.ensemble import assemble
from pysampler.prediction.evaluate import Case, Score, evaluate
from pysampler.prediction.host import set_up
from pysampler.prediction.monotone import migrate_table
from pysampler.prediction.precopy_model import Precopy
from pysampler.prediction.prediction import summarise
from pysampler.prediction.records import read_migrations

if TYPE_CHECKING:
    from collections.abc import Callable

    from pysampler.prediction.records import Migration
    from pysampler.vector.measurement import Measurement

    GuestOf = Callable[[DirtyCurve, Measurement], DirtyCurve]

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "migrations-qemu10.jsonl"
MEMBERS = 40  # of a known guest: where its sequential writers are is drawn


def known(guest: DirtyCurve, _: Measurement) -> DirtyCurve:
    """All is known."""
    return guest


def nonzero_sampled(guest: DirtyCurve, vector: Measurement) -> DirtyCurve:
    """The vector tells how many pages are not zero."""
    counts = Counts.of(vector)
    return replace(
        guest, nonzero_pages=counts.limit * counts.scale, zero_pages=counts.zero * counts.scale
    )


def most_likely(guest: DirtyCurve, vector: Measurement) -> DirtyCurve:
    """The vector tells all but the kinds of the writers."""
    counts = Counts.of(vector)
    new = np.maximum(np.diff(np.maximum.accumulate(counts.dirty), prepend=0.0), 0.0)
    clean = max(0.0, counts.limit - float(new.sum()))

    def components_of(logarithms: np.ndarray) -> list[Component]:
        pairs = np.exp(logarithms).reshape(-1, 2)
        return [
            Component(m, rate, component.kind)
            for (m, rate), component in zip(pairs, guest.components, strict=True)
        ]

    def cost(logarithms: np.ndarray) -> float:
        components = components_of(logarithms)
        curve = sum(m.pages * dirty_share(m.kind, m.rate * counts.seconds) for m in components)
        shares = np.maximum(np.diff(curve, prepend=0.0), 1e-9) / counts.limit
        likelihood = new @ np.log(shares) + clean * math.log(max(1e-12, 1 - shares.sum()))
        # There are no more pages than those that are not zero.
        excess = max(0.0, sum(component.pages for component in components) / counts.limit - 1)
        return float(-likelihood + 1e3 * counts.limit * excess**2)

    start = np.log(
        [
            x
            for component in guest.components
            for x in (component.pages / counts.scale, component.rate)
        ]
    )
    # From some sides: the line of a sequential writer has a corner.
    found = [
        minimize(cost, start + by, method="Nelder-Mead", options={"maxiter": 2000})
        for by in (0.0, 0.05, -0.05)
    ]
    components = components_of(min(found, key=lambda one: one.fun).x)
    scaled = tuple(
        replace(component, pages=component.pages * counts.scale) for component in components
    )
    return replace(nonzero_sampled(guest, vector), components=scaled)


def score(migrations: list[Migration], name: str, guest_of: GuestOf) -> Score:
    """Predict each migration as that of a guest that is known so far."""
    cases = []
    for one, precopy in zip(migrations, set_up(migrations, Precopy()), strict=True):
        vector = one.vectors[name]
        curve = guest_of(one.guest, vector)
        ensemble = assemble(curve, [curve] * MEMBERS, vector, np.random.default_rng(0))
        cell = [one.bandwidth], [one.downtime_limit_ms]
        outcomes = migrate_table(ensemble, precopy, *cell)
        cases.append(Case(one, precopy, summarise(outcomes, *cell, seed=0)[0]))
    return Score("qemu", name, tuple(cases))


def drawn_anew(migrations: list[Migration], name: str, rng: np.random.Generator) -> list[Migration]:
    """Return the migrations with other vectors; those that shared one share one."""
    drawn: dict[str, Measurement] = {}
    for one in migrations:
        old = one.vectors[name]
        key = old.to_json()
        if key not in drawn:
            counts = Counts.of(old)
            chances = np.diff(one.guest(counts.seconds), prepend=0.0)
            dirty, zero = chances / old.n_total_pages, one.guest.zero_pages / old.n_total_pages
            clean = max(0.0, 1 - dirty.sum() - zero)
            draw = rng.multinomial(counts.sampled, [*dirty, clean, zero])
            drawn[key] = replace(
                old,
                n_dirty_pages=tuple(int(n) for n in np.cumsum(draw[:-2])),
                n_zero_pages=int(draw[-1]),
            )
    return [replace(one, vectors={name: drawn[one.vectors[name].to_json()]}) for one in migrations]


def pooled(scores: list[Score]) -> Score:
    """Return the score of all cases."""
    return replace(scores[0], cases=tuple(case for one in scores for case in one.cases))


def main() -> None:
    """Print one table for each kind of vector."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("migrations", nargs="?", default=str(GOLDEN), metavar="FILE")
    parser.add_argument("--draws", type=int, default=16, help="vectors to draw of each guest (16)")
    args = parser.parse_args()
    with open(args.migrations, "rb") as file:
        migrations = [one for one in read_migrations(file) if one.guest is not None]
    rows: list[tuple[str, GuestOf | None]] = [
        ("everything", known),
        ("not its nonzero pages", nonzero_sampled),
        ("its kinds of writers", most_likely),
        ("nothing (predict)", None),
    ]
    for name in sorted({name for one in migrations for name in one.vectors}):
        rng = np.random.default_rng(0)
        given = [
            replace(one, vectors={name: one.vectors[name]})
            for one in migrations
            if name in one.vectors
        ]
        drawn = [drawn_anew(given, name, rng) for _ in range(args.draws)]
        table = Table(
            "known of the guest", "vectors", "median", "P90", "bad", "Brier", "in interval",
            title=f"{name}: {len(given)} migrations",
        )  # fmt: skip
        for kind, runs in (("as given", [given]), (f"{args.draws} drawn anew", drawn)):
            for title, guest_of in rows:
                scores = [
                    evaluate(run)[0] if guest_of is None else score(run, name, guest_of)
                    for run in runs
                ]
                figures = pooled(scores).to_dict()
                table.add_row(
                    title,
                    kind,
                    f"{figures['median-error-percent']:.2f} %",
                    f"{figures['p90-error-percent']:.1f} %",
                    f"{100 * figures['bad'] / figures['migrations']:.1f} %",
                    f"{figures['brier']:.3f}",
                    f"{100 * figures['coverage']:.0f} %" if guest_of is None else "",
                )
            table.add_section()
        Console().print(table)


if __name__ == "__main__":
    main()
