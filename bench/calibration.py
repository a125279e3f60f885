# SPDX-License-Identifier: MIT
"""Whether predictions from few dirty samples are as sure as they say.

Random guests whose writers are known are sampled on paper, some by so few samples that none is
dirty. Of each vector two things are asked: whether the 90 % interval of the dirty volume over the
members of the ensemble holds the guest's own, at some times; and how likely a migration converges,
which the same loop tells of the guest itself. Seeded: the same tables each time.
"""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from pysampler import Measurement
from pysampler.core import ComponentKind
from pysampler.prediction.curve import Component, DirtyCurve
from pysampler.prediction.ensemble import assemble, build_ensemble
from pysampler.prediction.precopy_model import Precopy, migrate
from pysampler.qemu.dirty_rate import PAGE_SIZE, SAMPLE_PAGES_MAX, SAMPLE_PAGES_MIN
from pysampler.qemu.migration import PAGE_BYTES
from pysampler.units import GIB
from pysampler.vector.schedule import periods_ms

if TYPE_CHECKING:
    from numpy.typing import NDArray

SECONDS = np.array([0.1, 0.3, 1.0, 3.0, 10.0])
CLASSES = ((0, 0), (1, 2), (3, 6), (7, 15), (16, math.inf))
MIGRATIONS = 2  # of each guest
PRECOPY = Precopy(deadline_ms=1e7)  # also where the first pass takes hours


class Result(NamedTuple):
    """What became of one guest.

    Attributes:
        dirty: samples that were dirty at the end.
        inside: whether the interval held the dirty volume, at each of SECONDS.
        predicted: probabilities of convergence, of MIGRATIONS random migrations.
        converged: whether the guest itself converges.
    """

    dirty: int
    inside: NDArray[np.bool_]
    predicted: NDArray[np.float64]
    converged: NDArray[np.float64]


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a number whose logarithm is uniform."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def random_guest(rng: np.random.Generator) -> tuple[DirtyCurve, Measurement]:
    """Return a guest and a vector of it.

    Of 64 MiB to 64 GiB, 128 to 16384 samples a GiB, and a hot set of which 0 to 20 samples are
    expected; each tenth guest has none, and every second a colder one too.
    """
    total = round(log_uniform(rng, 64 << 20, 64 << 30)) // PAGE_SIZE
    sampled = max(
        8, int(total * PAGE_SIZE / GIB * log_uniform(rng, SAMPLE_PAGES_MIN, SAMPLE_PAGES_MAX))
    )
    zero = rng.uniform(0, 0.8) * total
    expected = 0.0 if rng.random() < 0.1 else rng.uniform(0, min(20.0, sampled / 10))
    components = [
        Component(expected / sampled * total, log_uniform(rng, 0.05, 200), ComponentKind.RANDOM)
    ]
    if rng.random() < 0.5:
        more = rng.uniform(0, min(20.0, sampled / 10)) / sampled * total
        components.append(
            Component(more, log_uniform(rng, 0.01, components[0].rate), ComponentKind.RANDOM)
        )
    curve = DirtyCurve(tuple(components), None, (), (), total - zero, zero, 0.0, 1)
    periods = periods_ms(round(log_uniform(rng, 1000, 60_000)))
    shares = np.diff(curve(np.array(periods) / 1000), prepend=0.0) / total
    draw = rng.multinomial(sampled, [*shares, 1 - shares.sum() - zero / total, zero / total])
    dirty = tuple(int(n) for n in np.cumsum(draw[:-2]))
    return curve, Measurement(PAGE_SIZE, periods, dirty, sampled, int(draw[-1]), total)


def tried(rng: np.random.Generator, members: int) -> Result:
    """Predict one random guest."""
    guest, vector = random_guest(rng)
    ensemble = build_ensemble(vector, members, seed=int(rng.integers(1 << 32)))
    # Of a sequential writer it would be drawn where it is; there is none.
    truth = assemble(guest, [guest], vector, rng)
    volumes = np.array([member(SECONDS) for member in ensemble.members])
    low, high = np.quantile(volumes, (0.05, 0.95), axis=0, method="inverted_cdf")
    own = guest(SECONDS)
    predicted, converged = [], []
    for _ in range(MIGRATIONS):
        limit = log_uniform(rng, 30, 3000)
        # What decides is how many samples' worth of pages the link carries in the limit.
        pages = log_uniform(rng, 0.03, 30) * vector.n_total_pages / vector.n_sampled_pages
        cell = (pages * PAGE_BYTES / limit * 1000, limit)
        for of, found in ((ensemble, predicted), (truth, converged)):
            found.append(float(np.mean(migrate(of, PRECOPY, [cell])["converged"] > 0)))
    return Result(
        vector.n_dirty_pages[-1],
        (low <= own) & (own <= high),
        np.array(predicted),
        np.array(converged),
    )


def coverage_table(results: list[Result]) -> Table:
    """Return one row for each class of counts, and one for all."""
    table = Table("dirty samples", "guests", *(f"{t:g} s" for t in SECONDS), "all", "Brier",
                  title="Dirty volume inside the 90 % interval")  # fmt: skip
    for low, high in (*CLASSES, (0, math.inf)):
        some = [one for one in results if low <= one.dirty <= high]
        if some:
            inside = np.array([one.inside for one in some])
            brier = np.mean([(one.predicted - one.converged) ** 2 for one in some])
            name = "all" if (low, high) == (0, math.inf) else f"{low} to {high}"
            shares = (*inside.mean(axis=0), inside.mean())
            table.add_row(name, str(len(some)), *(f"{x:.1%}" for x in shares), f"{brier:.4f}")
    return table


def probability_table(results: list[Result]) -> Table:
    """Return one row for each tenth of the probabilities."""
    predicted = np.concatenate([one.predicted for one in results])
    converged = np.concatenate([one.converged for one in results])
    table = Table(
        "predicted", "migrations", "mean", "converged", title="Probability of convergence"
    )
    tenth = np.minimum(9, (predicted * 10).astype(int))
    for i in range(10):
        some = tenth == i
        if some.any():
            table.add_row(
                f"{i * 10} to {i * 10 + 10} %", str(some.sum()),
                f"{predicted[some].mean():.1%}", f"{converged[some].mean():.1%}",
            )  # fmt: skip
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--guests", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--members", type=int, default=200, help="of an ensemble (200)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    results = [tried(rng, args.members) for _ in range(args.guests)]
    Console().print(coverage_table(results), probability_table(results))


if __name__ == "__main__":
    main()
