# SPDX-License-Identifier: MIT
"""Noise or bias: a chi-square over the run, and suspects that may explain a bias.

If theory, sampling and the counted writes are all right, each row's z is a standard normal
number. The sum of their squares then follows the chi-square law. If it does not, each suspect is
tried: its measurements tell by how much it would move each row. The suspect whose moves explain
most of the excess is named, with the measurement that speaks against it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pysampler.units import format_duration
from pysampler.validation.row import DIRTY_BITMAP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pysampler.validation.row import Row

# Below this many expected dirty or clean samples, z is too skewed for a chi-square (Cochran 1954).
EXPECTED_MIN = 5

# A run of rows from nothing but noise is called biased this often.
FALSE_ALARM = 0.01

# A suspect explains a bias when it takes away at least this part of the excess over noise.
EXPLAINS = 0.5

_Z_95 = 1.959964


class Suspect(NamedTuple):
    """A possible cause of a bias.

    Attributes:
        name: for people.
        explained: the part of the excess chi-square that its effect takes away, 0 to 1.
        evidence: its measurements, for people.
    """

    name: str
    explained: float
    evidence: str


@dataclass(frozen=True)
class Judgement:
    """The verdict on all rows of one method.

    Attributes:
        n_rows: rows.
        n_judged: rows with enough expected dirty and clean samples.
        mean_deviation: mean of the absolute deviations from theory, a fraction.
        worst_deviation: the largest of them.
        mean_z: mean z of the judged rows.
        chi_square: sum of their z squared.
        p_value: chance of at least that from noise; nan when nothing was judged.
        n_outside: judged rows that are outside of their 95 % interval.
        p_outside: chance of at least so many; nan when nothing was judged.
        suspects: the largest first; none where there is no bias.
    """

    n_rows: int
    n_judged: int
    mean_deviation: float
    worst_deviation: float
    mean_z: float
    chi_square: float
    p_value: float
    n_outside: int
    p_outside: float
    suspects: tuple[Suspect, ...]

    @property
    def biased(self) -> bool:
        """Whether there is more than noise."""
        return self.p_value < FALSE_ALARM

    @property
    def _figures(self) -> str:
        return f"chi-square {self.chi_square:.1f} of {self.n_judged} rows, p = {self.p_value:.2g}"

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        if not self.n_judged:
            return "no row has enough samples on both sides to be judged"
        if not self.biased:
            return f"noise: {self._figures}"
        found = f"bias: {self._figures}"
        if self.suspects and self.suspects[0].explained >= EXPLAINS:
            name, explained, evidence = self.suspects[0]
            return f"{found}; {name} explains {explained:.0%} of it: {evidence}"
        return f"{found}; nothing that was measured explains it"


def is_judged(row: Row) -> bool:
    """Return whether a row is judged: sampled, enough expected dirty and clean samples."""
    if row.method == DIRTY_BITMAP:
        return False
    fraction = row.theory / row.n_pages
    return row.n_sampled_pages * min(fraction, 1 - fraction) >= EXPECTED_MIN


def judge(rows: Sequence[Row]) -> Judgement:
    """Judge the rows of one method."""
    from scipy import stats  # noqa: PLC0415 - slow to import

    judged = [row for row in rows if is_judged(row)]
    z = [row.z for row in judged]
    chi_square = sum(value * value for value in z)
    n_outside = sum(abs(value) > _Z_95 for value in z)
    deviations = [abs(row.deviation) for row in rows]
    p_value = float(stats.chi2.sf(chi_square, len(z))) if z else math.nan
    return Judgement(
        n_rows=len(rows),
        n_judged=len(z),
        mean_deviation=sum(deviations) / max(len(rows), 1),
        worst_deviation=max(deviations, default=0.0),
        mean_z=sum(z) / max(len(z), 1),
        chi_square=chi_square,
        p_value=p_value,
        n_outside=n_outside,
        p_outside=float(stats.binom.sf(n_outside - 1, len(z), 0.05)) if z else math.nan,
        suspects=_suspects(judged, chi_square) if p_value < FALSE_ALARM else (),
    )


def _suspects(rows: Sequence[Row], chi_square: float) -> tuple[Suspect, ...]:
    # Noise alone would leave one for each row.
    excess = chi_square - len(rows)
    found = [
        Suspect(
            name, min(1.0, max(0.0, (chi_square - _left_after(rows, effect)) / excess)), say(rows)
        )
        for name, effect, say in (
            ("a pass too long", pass_effect, _say_passes),
            ("a slowed writer", slow_effect, _say_writer),
            ("late wake-ups", late_effect, _say_late),
        )
    ]
    return tuple(sorted(found, key=lambda suspect: -suspect.explained))


def _left_after(rows: Sequence[Row], effect: Callable[[Row], float]) -> float:
    """Return the chi-square that is left when the rows are corrected by an effect as measured."""
    return sum(((row.estimate - row.theory - effect(row)) / max(row.sd, 0.5)) ** 2 for row in rows)


def pass_effect(row: Row) -> float:
    """Return by how many pages unequal passes move a row.

    The sample at place u of both passes, 0 to 1, is read at u h1 and again at T + u h2: on average
    (h2 - h1) / 2 more lie between its reads than between the starts.
    """
    more = (row.compare_seconds - row.baseline_seconds) / 2 * row.wps
    return row.expected(row.writes + more) - row.theory


def slow_effect(row: Row) -> float:
    """Return by how many pages a writer that slows down in the passes moves a row.

    Counted writes of the passes, less those that the rate of the whole time would have made.
    """
    steady = (row.compare_seconds - row.baseline_seconds) * row.wps
    more = (row.compare_writes - row.baseline_writes - steady) / 2
    return row.expected(row.writes + more) - row.theory


def late_effect(row: Row) -> float:
    """Return by how many pages a late start moves a row, if it began before it was counted.

    Writes are counted where the compare pass starts; were samples read as early as was asked, the
    writes of the delay would be missing.
    """
    return row.expected(row.writes - row.late_seconds * row.wps) - row.theory


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def slower(part: float) -> str:
    """Return the part of its speed that something lost, in words."""
    return f"{abs(part):.1%} {'slower' if part >= 0 else 'faster'}"


def _say_passes(rows: Sequence[Row]) -> str:
    baseline = format_duration(_mean([row.baseline_seconds for row in rows]))
    compare = format_duration(_mean([row.compare_seconds for row in rows]))
    worst = max(abs(row.compare_seconds - row.baseline_seconds) for row in rows)
    return (
        f"baseline passes took {baseline} and compare passes {compare} on average,"
        f" and differed by up to {format_duration(worst)}"
    )


def _say_writer(rows: Sequence[Row]) -> str:
    in_passes = sum(row.baseline_writes + row.compare_writes for row in rows)
    seconds = sum(row.baseline_seconds + row.compare_seconds for row in rows)
    overall = _mean([row.wps for row in rows])
    rate = in_passes / seconds / overall - 1 if seconds and overall else 0.0
    return (
        f"the writer was {slower(_mean([row.slowed for row in rows]))} than before, and during"
        f" passes {slower(-rate)} than on the whole"
    )


def _say_late(rows: Sequence[Row]) -> str:
    late = [row.late_seconds for row in rows]
    return (
        f"compare passes began {format_duration(_mean(late))} late on average,"
        f" at worst {format_duration(max(late))}"
    )


class AssumedRate(NamedTuple):
    """The rows as they would look if the asked rate were taken for the real one.

    Attributes:
        mean_deviation: mean deviation from theory at the asked rate, a signed fraction.
        slower: how much slower than asked the writer was, a fraction.
    """

    mean_deviation: float
    slower: float


def at_the_assumed_rate(rows: Sequence[Row]) -> AssumedRate | None:
    """Compare with the asked rate, as the published table did; None when none was asked."""
    asked = [row for row in rows if row.asked_wps]
    if not asked:
        return None
    return AssumedRate(
        _mean(
            [
                row.estimate / row.expected(row.asked_wps * row.calc_time_ms / 1000) - 1
                for row in asked
            ]
        ),
        _mean([1 - row.wps / row.asked_wps for row in asked]),
    )
