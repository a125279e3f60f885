# SPDX-License-Identifier: MIT
"""How good the predictors are, on real migrations whose vector is known.

A file of such migrations has one JSON object a line: ``config`` (max-bandwidth in bytes/s,
downtime-limit in ms, limit-s, multifd-channels if there are any, and what the guest does), one or
several vectors (``vector``, ``vector-512``) and ``result`` (converged, and QEMU's query-migrate
reply).

The link's own speed is not in a vector. It is cross-validated: each migration is predicted with
the median of the speeds at which the others sent their last pass.
"""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler.core import ModeKind
from pysampler.errors import FormatError
from pysampler.measurement import MAX_JSON_BYTES, Measurement
from pysampler.prediction.curve import DirtyCurve, Mode
from pysampler.prediction.monotone import migrate_table
from pysampler.prediction.precopy import LIMITS, MULTIFD_CHANNELS, Precopy
from pysampler.prediction.prediction import (
    MAX_LIMIT_MS,
    MEMBERS,
    Cell,
    Model,
    check_measurement,
    predict,
    summarise,
)
from pysampler.units import MAX_RATE, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pysampler.prediction.ensemble import Ensemble

MAX_RECORDS = 10_000
_BAD_ERROR = 0.25  # as the author of the published predictor counts them
_LINK_BYTES = 10_000_000  # a last pass that tells the link's speed


@dataclass(frozen=True, slots=True)
class Migration:
    """One real migration.

    Attributes:
        line: where it stands in the file.
        bandwidth: bytes per second.
        downtime_limit_ms: its downtime-limit.
        limit_ms: it was cancelled after that.
        converged: whether it came to its end.
        total_ms: how long it took; infinite where it did not converge.
        link: bytes per second of its last pass; None where that was too short to tell.
        multifd: whether it had multifd channels.
        vectors: name -> the guest's vector.
        title: one line for people.
        guest: what the guest really does; None where the record does not say so.
    """

    line: int
    bandwidth: float
    downtime_limit_ms: float
    limit_ms: float
    converged: bool
    total_ms: float
    link: float | None
    multifd: bool
    vectors: dict[str, Measurement]
    title: str
    guest: DirtyCurve | None


@dataclass(frozen=True, slots=True)
class Case:
    """A migration and its prediction."""

    migration: Migration
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


def read_migrations(lines: Iterable[bytes]) -> list[Migration]:
    """Read the lines of a file of migrations.

    Raises:
        FormatError: a line is none; the message names the line and the key.
    """
    migrations: list[Migration] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(migrations) == MAX_RECORDS:
            raise FormatError(f"line {number}: more than {MAX_RECORDS} migrations")
        if len(line) > MAX_JSON_BYTES:
            raise FormatError(f"line {number}: longer than any migration")
        try:
            migrations.append(_migration(json.loads(line), number))
        except FormatError as error:
            raise FormatError(f"line {number}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise FormatError(f"line {number}: not JSON: {error}") from error
    if not migrations:
        raise FormatError("no migrations in it")
    return migrations


def _migration(record: object, line: int) -> Migration:
    config, result = _member(record, "config", dict), _member(record, "result", dict)
    reply = _member(result, "query-migrate", dict)
    converged = bool(_member(result, "converged", bool))
    vectors = {
        name: _bare(Measurement.from_dict(value))
        for name, value in (record.items() if isinstance(record, dict) else ())
        if name == "vector" or name.startswith("vector-")
    }
    if not vectors:
        raise FormatError("vector: missing")
    least_ms, most_ms = LIMITS["deadline_ms"]
    return Migration(
        line=line,
        bandwidth=_number(config, "max-bandwidth"),
        downtime_limit_ms=_number(config, "downtime-limit", most=MAX_LIMIT_MS),
        limit_ms=1000 * _number(config, "limit-s", least=least_ms / 1000, most=most_ms / 1000),
        converged=converged,
        # One that was cancelled has no time of its own.
        total_ms=_number(reply, "total-time") if converged else math.inf,
        link=_link(reply),
        multifd=_has_channels(config),
        vectors=vectors,
        title=f"{config.get('mode', '')} {config.get('ws-mib', '')} MiB at "
        f"{config.get('wps', '')}/s",
        guest=_known_guest(config, next(iter(vectors.values())).page_size),
    )


def _link(reply: dict[str, Any]) -> float | None:
    """Return the speed of the last pass, where it sent enough to tell."""
    ram, downtime = reply.get("ram"), reply.get("downtime")
    sent = ram.get("downtime-bytes") if isinstance(ram, dict) else None
    if not isinstance(downtime, int) or not 0 < downtime <= MAX_LIMIT_MS:
        return None
    if not isinstance(sent, int) or not _LINK_BYTES < sent <= MAX_RATE:
        return None
    return min(1000 * sent / downtime, MAX_RATE)


def _bare(vector: Measurement) -> Measurement:
    """Return a vector with nothing of x-pysampler but what it is predicted from."""
    kept = {key: vector.details[key] for key in ("periods-ns",) if key in vector.details}
    return replace(vector, details=kept)


def _has_channels(config: dict[str, Any]) -> bool:
    channels = config.get("multifd-channels")
    if channels not in (None, MULTIFD_CHANNELS):
        raise FormatError(
            f"multifd-channels: {repr(channels)[:40]}; the model knows QEMU's default of "
            f"{MULTIFD_CHANNELS} only"
        )
    return channels is not None


def _known_guest(config: dict[str, Any], page_size: int) -> DirtyCurve | None:
    kind = config.get("mode")
    try:
        ram, fill, pages = (
            _number(config, key) * MIB / page_size for key in ("ram-mib", "fill-mib", "ws-mib")
        )
        writes = _number(config, "wps")
    except FormatError:
        return None  # a record need not say what its guest does
    modes: tuple[Mode, ...]
    if kind == "uniform":
        modes = (Mode(pages, writes / pages, ModeKind.RANDOM),)
    elif kind == "seq":
        modes = (Mode(pages, writes / pages, ModeKind.SEQUENTIAL),)
    elif kind == "hotcold":  # 90 % of the writes go to 10 % of the pages
        hot, cold = 0.1 * pages, 0.9 * pages
        modes = (
            Mode(hot, 0.9 * writes / hot, ModeKind.RANDOM),
            Mode(cold, 0.1 * writes / cold, ModeKind.RANDOM),
        )
    else:
        return None
    return DirtyCurve(modes, None, (), (), fill, max(0.0, ram - fill), 0.0, 1)


def _member(record: object, key: str, kind: type) -> Any:
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise FormatError(f"{key}: missing or not {kind.__name__}")
    return value


def _number(
    record: dict[str, Any], key: str, *, least: float = 0.0, most: float = MAX_RATE
) -> float:
    value = record.get(key)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise FormatError(f"{key}: {str(value)[:40]!r} is not a positive number")
    if not least <= value <= most:
        raise FormatError(f"{key}: {str(value)[:40]} is not between {least:g} and {most:g}")
    return float(value)


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
        precopy: how they were set up; with no link in it, that is cross-validated.
        unfinished: take vectors whose status is not ``measured``, too.
        members: guests to draw for each vector.

    Raises:
        FormatError: a vector cannot be predicted from; the message names its line and the key.
        MissingFeatureError: scipy is not there.
    """
    names = sorted({name for migration in migrations for name in migration.vectors})
    scores = []
    for name in names:
        known = [migration for migration in migrations if name in migration.vectors]
        for one in known:
            with _named(one, name):
                check_measurement(one.vectors[name], unfinished=unfinished)
        scores.append(Score("qemu", name, tuple(_qemu_cases(known, name, precopy, members))))
        scores.append(Score("published", name, tuple(_published_cases(known, name))))
    return scores


@contextmanager
def _named(migration: Migration, name: str) -> Iterator[None]:
    try:
        yield
    except FormatError as error:
        raise FormatError(f"line {migration.line}: {name}: {error}") from error


def _published_cases(migrations: list[Migration], name: str) -> Iterable[Case]:
    for one in migrations:
        how = Precopy(deadline_ms=one.limit_ms)
        with _named(one, name):
            found = predict(
                one.vectors[name], one.bandwidth, one.downtime_limit_ms,
                model="published", precopy=how, unfinished=True,
            )  # fmt: skip
        yield Case(one, found.cells[0])


def set_up(migrations: list[Migration], precopy: Precopy) -> Iterable[Precopy]:
    """Yield how each migration was set up; a link that is not known is that of the others."""
    links = np.array([one.link or math.nan for one in migrations])
    for i, one in enumerate(migrations):
        how = replace(precopy, deadline_ms=one.limit_ms, multifd=precopy.multifd or one.multifd)
        if how.link is None:
            others = links[np.arange(len(links)) != i]
            known = others[~np.isnan(others)]
            how = replace(how, link=float(np.median(known)) if len(known) else None)
        yield how


def _qemu_cases(
    migrations: list[Migration], name: str, precopy: Precopy | None, members: int
) -> Iterable[Case]:
    from pysampler.prediction.ensemble import build_ensemble  # noqa: PLC0415 - needs scipy

    ensembles: dict[str, Ensemble] = {}
    for one, how in zip(migrations, set_up(migrations, precopy or Precopy()), strict=True):
        key = one.vectors[name].to_json()
        if key not in ensembles:
            with _named(one, name):
                ensembles[key] = build_ensemble(one.vectors[name], members, seed=0)
        cell = [one.bandwidth], [one.downtime_limit_ms]
        outcomes = migrate_table(ensembles[key], how, *cell)
        yield Case(one, summarise(outcomes, *cell, seed=0)[0])
