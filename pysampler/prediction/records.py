# SPDX-License-Identifier: MIT
"""Records of real migrations whose guest was measured.

A file of them has one JSON object a line: ``config`` (max-bandwidth in bytes/s, downtime-limit in
ms, limit-s, multifd-channels if there are any, and what the guest does), one or several vectors
(``vector``, ``vector-512``) and ``result`` (converged, and QEMU's query-migrate reply).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pysampler.core import ComponentKind
from pysampler.errors import FormatError
from pysampler.prediction.curve import Component, DirtyCurve
from pysampler.prediction.precopy_model import LIMITS, MULTIFD_CHANNELS
from pysampler.prediction.prediction import MAX_LIMIT_MS
from pysampler.units import MAX_RATE, MIB
from pysampler.vector.measurement import MAX_JSON_BYTES, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_RECORDS = 10_000
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
        guest: the guest's true writers; None where the record does not have them.
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
        total_ms=_number(reply, "total-time", least=1) if converged else math.inf,
        link=_link(reply),
        multifd=_has_channels(config),
        vectors=vectors,
        title=_title(config, line),
        guest=_known_guest(config, next(iter(vectors.values())).page_size),
    )


def _title(config: dict[str, Any], line: int) -> str:
    """Return what its guest does, where the record says it; else where it stands."""
    if "ws-mib" not in config:
        return f"line {line}"
    return f"{config.get('mode', '')} {config['ws-mib']} MiB at {config.get('wps', '')}/s"


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
    """Return a vector whose x-pysampler has only the members that a prediction needs."""
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
    components: tuple[Component, ...]
    if kind == "uniform":
        components = (Component(pages, writes / pages, ComponentKind.RANDOM),)
    elif kind == "seq":
        components = (Component(pages, writes / pages, ComponentKind.SEQUENTIAL),)
    elif kind == "hotcold":  # 90 % of the writes go to 10 % of the pages
        hot, cold = 0.1 * pages, 0.9 * pages
        components = (
            Component(hot, 0.9 * writes / hot, ComponentKind.RANDOM),
            Component(cold, 0.1 * writes / cold, ComponentKind.RANDOM),
        )
    else:
        return None
    return DirtyCurve(components, None, (), (), fill, max(0.0, ram - fill), 0.0, 1)


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
