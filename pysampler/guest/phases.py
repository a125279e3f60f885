# SPDX-License-Identifier: MIT
"""The workload of each vCPU over time: one for good, or a schedule of phases from a file.

The file is JSON, or TOML with the same members::

    {"phases": [{"for": "5s", "workload": "uniform:wps=100k"},
                {"for": "500ms", "workload": ["idle", "1=sweep:wps=1k"]}],
     "repeat": true}

The last phase may have no ``for`` and then lasts; after a last one that ends all is idle, unless
``repeat`` is true. Phases are timed on the guest's clock, which stands while the guest is stopped.
Each phase begins new sequences of pages.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pysampler.core import Pattern
from pysampler.errors import FormatError, MissingFeatureError, UsageError
from pysampler.guest.workload import Workload
from pysampler.units import parse_duration_ms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FOREVER_NS = (1 << 63) - 1
_IDLE = Workload("idle", Pattern.IDLE)
_INDEX = re.compile(r"\d{1,9}", re.ASCII)
_JSON_MEMBERS = frozenset({"vcpus", "workloads", "entries", "repeat"})
_MAX_FILE = 1 << 20
_MAX_PHASES = 10_000
MAX_PHASE_NS = 1000 * 3600 * 1_000_000_000  # 1000 h


class Phase(NamedTuple):
    """The phase that is under way.

    Attributes:
        number: 0 for the first; repeating goes on counting.
        start_ns: of the guest's clock.
        end_ns: of the guest's clock, `FOREVER_NS` for no end.
        workloads: one per vCPU.
    """

    number: int
    start_ns: int
    end_ns: int
    workloads: tuple[Workload, ...]


@dataclass(frozen=True, slots=True)
class Phases:
    """A schedule.

    Attributes:
        entries: (duration in ns, or None for good; one workload per vCPU), in order.
        repeat: begin again at the end.
    """

    entries: tuple[tuple[int | None, tuple[Workload, ...]], ...]
    repeat: bool = False

    def __post_init__(self) -> None:
        """Check the durations.

        Raises:
            UsageError: one is not from 1 ns to 1000 h.
        """
        for i, (length, _) in enumerate(self.entries):
            if length is not None and not 1 <= length <= MAX_PHASE_NS:
                raise UsageError(f"phases[{i}].for: not from 1ms to 1000h")

    @classmethod
    def steady(cls, workloads: Iterable[Workload]) -> Phases:
        """Return the schedule of one phase without end."""
        return cls(((None, tuple(workloads)),))

    @classmethod
    def from_file(cls, path: str, n_vcpus: int) -> Phases:
        """Read a schedule.

        Raises:
            FormatError: not such a file; the message names file and member.
            UsageError: a workload that is none.
        """
        try:
            with open(path, "rb") as file:
                text = file.read(_MAX_FILE + 1)
        except OSError as error:
            raise FormatError(f"{path}: {error.strerror}") from error
        if len(text) > _MAX_FILE:
            raise FormatError(f"{path}: longer than 1 MiB, so not a schedule of phases")
        document = _parse_document(path, text)
        try:
            return _from_document(document, n_vcpus)
        except (FormatError, UsageError) as error:
            raise type(error)(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, value: object, n_vcpus: int) -> Phases:
        """Return the schedule of `to_json`, which may come from anyone.

        Raises:
            FormatError: not such a value; the message names the member.
            UsageError: a workload that is none.
        """
        if not isinstance(value, dict) or set(value) != _JSON_MEMBERS:
            raise FormatError(f"not an object of {', '.join(sorted(_JSON_MEMBERS))}")
        if type(value["vcpus"]) is not int or value["vcpus"] != n_vcpus:
            raise FormatError(f"vcpus: not {n_vcpus}, the number of this guest's")
        texts, entries, repeat = value["workloads"], value["entries"], value["repeat"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise FormatError("workloads: not an array of texts")
        if not isinstance(entries, list) or not 1 <= len(entries) <= _MAX_PHASES:
            raise FormatError(f"entries: not an array of 1 to {_MAX_PHASES}")
        if not isinstance(repeat, bool):
            raise FormatError("repeat: not true or false")
        workloads = [Workload.parse(text) for text in texts]
        phases = tuple(
            _entry_of_json(i, entry, workloads, n_vcpus) for i, entry in enumerate(entries)
        )
        _check_endless(phases, repeat)
        return cls(phases, repeat)

    def to_json(self) -> dict[str, Any]:
        """Return the schedule as JSON has it: each workload's text once, and where it is used.

        ``entries`` has ``[ns or null, [number of each vCPU's workload]]`` of each phase, or one
        number where all vCPUs have the same.
        """
        texts = dict.fromkeys(workload.text for workload in self.workloads())
        numbers = {text: i for i, text in enumerate(texts)}
        entries: list[list[Any]] = []
        for length, workloads in self.entries:
            row = [numbers[workload.text] for workload in workloads]
            entries.append([length, row if len(set(row)) > 1 else row[0]])
        return {
            "vcpus": len(self.entries[0][1]),
            "workloads": list(texts),
            "entries": entries,
            "repeat": self.repeat,
        }

    def at(self, guest_ns: int) -> Phase:
        """Return the phase of a time on the guest's clock."""
        n_vcpus = len(self.entries[0][1])
        lengths = [length for length, _ in self.entries]
        rounds, start, number = 0, 0, 0
        if self.repeat and None not in lengths:
            total = sum(length or 0 for length in lengths)
            rounds = guest_ns // total
            start, number = rounds * total, rounds * len(lengths)
        for length, workloads in self.entries:
            if length is None:
                return Phase(number, start, FOREVER_NS, workloads)
            if guest_ns < start + length:
                return Phase(number, start, start + length, workloads)
            start, number = start + length, number + 1
        return Phase(number, start, FOREVER_NS, (_IDLE,) * n_vcpus)

    def workloads_of(self, number: int) -> tuple[Workload, ...]:
        """Return the workloads of the phase of a number, as `at` counts them."""
        if self.repeat:
            number %= len(self.entries)
        if number < len(self.entries):
            return self.entries[number][1]
        return (_IDLE,) * len(self.entries[0][1])

    def workloads(self) -> Iterator[Workload]:
        """Yield all workloads of the schedule."""
        for _, workloads in self.entries:
            yield from workloads


def assign(texts: Sequence[str], n_vcpus: int) -> tuple[Workload, ...]:
    """Return each vCPU's workload.

    Args:
        texts: ``INDEX=WORKLOAD`` for one vCPU. Without an index: one for all vCPUs that are
            left, or one for each of these, in order.
        n_vcpus: how many there are.

    Raises:
        UsageError: an index out of range or twice, too many or too few workloads.
    """
    chosen: dict[int, Workload] = {}
    plain = []
    for text in texts:
        index, equals, rest = text.partition("=")
        if not equals or _INDEX.fullmatch(index.strip()) is None:
            plain.append(Workload.parse(text))
            continue
        vcpu = int(index)
        if vcpu >= n_vcpus or vcpu in chosen:
            raise UsageError(
                f"workload {text[:40]!r}: vCPU {vcpu} "
                + ("twice" if vcpu in chosen else f"is not there; there are {n_vcpus}, from 0")
            )
        chosen[vcpu] = Workload.parse(rest)
    left = [vcpu for vcpu in range(n_vcpus) if vcpu not in chosen]
    if len(plain) not in {0, 1, len(left)}:
        raise UsageError(
            f"{len(plain)} workloads for {len(left)} vCPUs; give one for all, one for each, or "
            "INDEX=WORKLOAD"
        )
    for i, vcpu in enumerate(left):
        chosen[vcpu] = plain[i if len(plain) > 1 else 0] if plain else _IDLE
    return tuple(chosen[vcpu] for vcpu in range(n_vcpus))


def _parse_document(path: str, text: bytes) -> object:
    try:
        if path.endswith(".toml"):
            try:
                import tomllib  # noqa: PLC0415 - from Python 3.11 on
            except ImportError as error:
                raise MissingFeatureError(
                    f"{path}: TOML needs Python 3.11; write the same members as JSON"
                ) from error
            return tomllib.loads(text.decode("utf-8"))
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: {' '.join(str(error).split())}") from error


def _from_document(document: object, n_vcpus: int) -> Phases:
    if not isinstance(document, dict):
        raise FormatError("not an object with phases")
    unknown = set(document) - {"phases", "repeat"}
    if unknown:
        raise FormatError(f"{min(unknown)}: unknown; there are phases and repeat")
    phases, repeat = document.get("phases"), document.get("repeat", False)
    if not isinstance(phases, list) or not 1 <= len(phases) <= _MAX_PHASES:
        raise FormatError(f"phases: not an array of 1 to {_MAX_PHASES} phases")
    if not isinstance(repeat, bool):
        raise FormatError("repeat: not true or false")
    entries = tuple(_entry(i, phase, n_vcpus) for i, phase in enumerate(phases))
    _check_endless(entries, repeat)
    return Phases(entries, repeat)


def _check_endless(entries: Sequence[tuple[int | None, Any]], repeat: bool) -> None:
    endless = [i for i, (length, _) in enumerate(entries) if length is None]
    if endless and (repeat or endless[0] < len(entries) - 1):
        raise FormatError(f"phases[{endless[0]}].for: missing; only a last one may last")


def _entry_of_json(
    i: int, entry: object, workloads: Sequence[Workload], n_vcpus: int
) -> tuple[int | None, tuple[Workload, ...]]:
    if not isinstance(entry, list) or len(entry) != 2:
        raise FormatError(f"entries[{i}]: not an array of a length and workloads")
    length, row = entry
    if length is not None and (type(length) is not int or not 1 <= length <= MAX_PHASE_NS):
        raise FormatError(f"entries[{i}][0]: not null, nor a whole number from 1 to {MAX_PHASE_NS}")
    if not isinstance(row, list):
        row = [row] * n_vcpus
    if len(row) != n_vcpus:
        raise FormatError(f"entries[{i}][1]: it is for {len(row)} vCPUs; there are {n_vcpus}")
    if not all(type(number) is int and 0 <= number < len(workloads) for number in row):
        raise FormatError(f"entries[{i}][1]: not a number below {len(workloads)} for each vCPU")
    return length, tuple(workloads[number] for number in row)


def _entry(i: int, phase: Any, n_vcpus: int) -> tuple[int | None, tuple[Workload, ...]]:
    where = f"phases[{i}]"
    if not isinstance(phase, dict) or set(phase) - {"for", "workload"}:
        raise FormatError(f"{where}: not an object with for and workload")
    length, texts = phase.get("for"), phase.get("workload")
    if isinstance(texts, str):
        texts = [texts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise FormatError(f"{where}.workload: not a text or an array of texts")
    if length is None:
        return None, assign(texts, n_vcpus)
    if not isinstance(length, str):
        raise FormatError(f'{where}.for: not a text such as "500ms"')
    ms, _ = parse_duration_ms(length, f"{where}.for")
    if not 1 <= ms <= MAX_PHASE_NS // 1_000_000:
        raise FormatError(f"{where}.for: {length!r} is not from 1ms to 1000h")
    return ms * 1_000_000, assign(texts, n_vcpus)
