# SPDX-License-Identifier: MIT
"""Samples that nobody could compare: swapped out, file-backed, under userfaultfd.

Nobody knows whether they were written. So the guests of the ensemble have any share of them dirty,
from none to all. Where they are most of the samples, that would be no prediction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.errors import FormatError
from pysampler.vector.measurement import MAX_PERIODS

if TYPE_CHECKING:
    from pysampler.vector.measurement import Measurement

MOST_SHARE = 0.5
_WORTH_SAYING = 0.01
_CURES = {
    "swapped-out": "let the guest come back from swap",
    "file-backed": "measure as a user who may read the file",
    "userfaultfd": "measure when the restore has filled its memory",
    "closed": "measure as a user who may read the process",
}


def unreadable_samples(measurement: Measurement) -> int:
    """Return how many samples could not be compared, in the pass with most of them.

    Raises:
        FormatError: x-pysampler is inconsistent, or more than half of the samples are unreadable.
    """
    samples = _samples(measurement)
    if samples > MOST_SHARE * measurement.n_sampled_pages:
        cures = [cure for cause, cure in _CURES.items() if _causes(measurement).get(cause)]
        raise FormatError(
            f"x-pysampler.unreadable: {_share(measurement, samples)}: of so many anything can be"
            f" predicted; {cures[0] if cures else 'measure again when they can be read'}"
        )
    return samples


def unreadable_remark(measurement: Measurement) -> str | None:
    """Return the warning about samples that could not be compared; None when all could."""
    samples = _samples(measurement)
    if samples <= _WORTH_SAYING * measurement.n_sampled_pages:
        return None
    return f"{_share(measurement, samples)}; any number of them may be dirty"


def _share(measurement: Measurement, samples: int) -> str:
    causes = ", ".join(f"{cause}: {n}" for cause, n in _causes(measurement).items() if n)
    share = samples / max(1, measurement.n_sampled_pages)
    return f"{share:.0%} of the samples could not be read{f' ({causes})' if causes else ''}"


def _samples(measurement: Measurement) -> int:
    passes = measurement.details.get("unreadable")
    if passes is None:  # of a measurement without passes, or of another tool
        baseline = measurement.details.get("baseline")
        first = baseline.get("unreadable", 0) if isinstance(baseline, dict) else 0
        return _count("baseline.unreadable", first, measurement)
    if not isinstance(passes, list) or len(passes) > MAX_PERIODS:
        raise FormatError(f"x-pysampler.unreadable: not an array of at most {MAX_PERIODS} counts")
    counts = (_count(f"unreadable[{i}]", value, measurement) for i, value in enumerate(passes))
    return max(counts, default=0)


def _causes(measurement: Measurement) -> dict[str, int]:
    """Return the causes that are known, with their samples."""
    found = measurement.details.get("unreadable-causes", {})
    if not isinstance(found, dict):
        raise FormatError("x-pysampler.unreadable-causes: not an object")
    return {
        cause: _count(f"unreadable-causes.{cause}", found[cause], measurement)
        for cause in _CURES
        if cause in found
    }


def _count(key: str, value: object, measurement: Measurement) -> int:
    # bool is an int to Python and is none to JSON.
    if type(value) is not int or not 0 <= value <= measurement.n_sampled_pages:
        raise FormatError(f"x-pysampler.{key}: not a whole number from 0 to n-sampled-pages")
    return value
