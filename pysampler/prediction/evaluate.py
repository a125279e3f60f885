# SPDX-License-Identifier: MIT
"""Score the predictors on real migrations whose vector is known."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler.errors import FormatError
from pysampler.prediction.ensemble import Ensemble, build_ensemble
from pysampler.prediction.host import set_up
from pysampler.prediction.monotone import migrate_table
from pysampler.prediction.precopy_model import Precopy
from pysampler.prediction.prediction import (
    MEMBERS,
    Cell,
    Model,
    check_measurement,
    predict,
    summarise,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pysampler.prediction.records import Migration

_BAD_ERROR = 0.25  # as the author of the published predictor counts them


@dataclass(frozen=True, slots=True)
class Case:
    """A migration, how it was taken to be set up, and its prediction."""

    migration: Migration
    precopy: Precopy
    cell: Cell

    @property
    def error(self) -> float | None:
        """Relative error of the total time; None where either did not converge."""
        if not self.migration.converged or self.cell.total_ms is None:
            return None
        return self.cell.total_ms / self.migration.total_ms - 1

    @property
    def bad(self) -> bool:
        """Whether the verdict is wrong or the error 25 % or more."""
        wrong = (self.cell.total_ms is not None) != self.migration.converged
        return wrong or (self.error is not None and abs(self.error) >= _BAD_ERROR)

    @property
    def covered(self) -> bool | None:
        """Whether the 90 % interval holds the time; None where there is no interval or time."""
        interval = self.cell.total_ms_interval
        if not self.migration.converged or interval is None:
            return None
        low, high = (np.inf if end is None else end for end in interval)
        return bool(low <= self.migration.total_ms <= high)


@dataclass(frozen=True, slots=True)
class Score:
    """One model with one kind of vector, over all migrations; errors are shares.

    Attributes:
        model: qemu or published.
        vector: name of the vectors.
        cases: all migrations.
    """

    model: Model
    vector: str
    cases: tuple[Case, ...]

    @property
    def errors(self) -> list[float]:
        """Absolute errors of the total time."""
        return [abs(case.error) for case in self.cases if case.error is not None]

    @property
    def n_bad(self) -> int:
        """Migrations with an error of 25 % or more or a wrong verdict."""
        return sum(case.bad for case in self.cases)

    @property
    def brier(self) -> float:
        """Mean squared error of the probability of convergence."""
        return float(
            np.mean([(case.cell.p_converge - case.migration.converged) ** 2 for case in self.cases])
        )

    @property
    def coverage(self) -> float | None:
        """Share of the times that lie inside their 90 % interval."""
        covered = [case.covered for case in self.cases if case.covered is not None]
        return float(np.mean(covered)) if covered else None

    def to_dict(self) -> dict[str, Any]:
        """Return the score's JSON object; errors in percent."""
        errors = [100 * error for error in self.errors]
        median, p90 = np.quantile(errors, (0.5, 0.9)) if errors else (None, None)
        return {
            "model": self.model,
            "vector": self.vector,
            "migrations": len(self.cases),
            "median-error-percent": median,
            "p90-error-percent": p90,
            "worst-error-percent": max(errors, default=None),
            "bad": self.n_bad,
            "brier": self.brier,
            "coverage": self.coverage,
        }


def evaluate(
    migrations: list[Migration],
    *,
    precopy: Precopy | None = None,
    unfinished: bool = False,
    members: int = MEMBERS,
) -> list[Score]:
    """Predict each migration with each model and each kind of vector.

    Args:
        migrations: from `read_migrations`.
        precopy: their settings; the host's values that it leaves open are cross-validated.
        unfinished: take vectors whose status is not ``measured``, too.
        members: guests to draw for each vector.

    Raises:
        FormatError: a vector cannot be predicted from; the message names its line and the key.
    """
    names = sorted({name for migration in migrations for name in migration.vectors})
    setups = set_up(migrations, precopy or Precopy())
    all_set_up = list(zip(migrations, setups, strict=True))
    scores = []
    for name in names:
        known = [(one, setup) for one, setup in all_set_up if name in one.vectors]
        for one, _ in known:
            with _named(one, name):
                check_measurement(one.vectors[name], unfinished=unfinished)
        scores.append(Score("qemu", name, tuple(_qemu_cases(known, name, members))))
        published = _published_cases([one for one, _ in known], name)
        scores.append(Score("published", name, tuple(published)))
    return scores


@contextmanager
def _named(migration: Migration, name: str) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise FormatError(f"line {migration.line}: {name}: {error}") from error


def _published_cases(migrations: list[Migration], name: str) -> Iterable[Case]:
    for one in migrations:
        setup = Precopy(deadline_ms=one.limit_ms)
        with _named(one, name):
            found = predict(
                one.vectors[name], one.bandwidth, one.downtime_limit_ms,
                model="published", precopy=setup, unfinished=True,
            )  # fmt: skip
        yield Case(one, setup, found.cells[0])


def _qemu_cases(
    migrations: list[tuple[Migration, Precopy]], name: str, members: int
) -> Iterable[Case]:
    ensembles: dict[str, Ensemble] = {}
    for one, setup in migrations:
        key = one.vectors[name].to_json()
        if key not in ensembles:
            with _named(one, name):
                ensembles[key] = build_ensemble(one.vectors[name], members, seed=0)
        cell = [one.bandwidth], [one.downtime_limit_ms]
        outcomes = migrate_table(ensembles[key], setup, *cell)
        yield Case(one, setup, summarise(outcomes, *cell, seed=0)[0])
