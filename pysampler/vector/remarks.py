# SPDX-License-Identifier: MIT
"""Warnings about a measurement, each with its cure."""

from __future__ import annotations

from statistics import median_low
from typing import TYPE_CHECKING

from pysampler.units import format_duration, format_size
from pysampler.vector.measurement import Mode
from pysampler.vector.schedule import periods_ms
from pysampler.vector.unreadable import in_words

if TYPE_CHECKING:
    from pysampler.vector.measurement import Measurement

# A pass that takes longer is no snapshot of a moment of the first period.
PASS_SHARE_MAX = 0.1

# A later start than this is the machine's doing, not the scheduler's.
LATE_NS_MAX = 5_000_000

_FEW_DIRTY = 10

_FASTER = {
    True: "use fewer --sample-pages, more --threads or --profile fast",
    False: "--mode page-sampling takes less",
}

_READABLE = {
    "swapped-out": "measure while the guest is in memory",
    "file-backed": "run as a user who may read the file",
    "userfaultfd": "measure when the memory has been restored",
}


def remarks(measurement: Measurement) -> list[str]:
    """Return the warnings about a measurement, one line each."""
    details = measurement.details
    is_sampled = measurement.mode is Mode.PAGE_SAMPLING
    lines = [*_slow_passes(measurement), *_late_passes(measurement), *_unreadable(measurement)]
    if details.get("tracking") == "full-comparison":
        why = details.get("tracking-reason")
        lines.append(
            "writes could not be tracked, so the content of all pages was compared: writes of what"
            f" a page already holds do not show{f' ({why})' if why else ''}"
        )
    elif "tracking-reason" in details:
        lines.append(
            f"{details['tracking-reason']}, so the guest's writes were tracked by userfaultfd: the"
            " first write of each page costs it a fault"
        )
    coarse = [b for b in details.get("blocks", []) if b.get("tracking-page-size", 0) > 4096]
    if coarse:
        size = coarse[0]["tracking-page-size"]
        names = ", ".join(str(block["idstr"]) for block in coarse)
        lines.append(
            f"{names}: tracked by pages of {format_size(size)}, for huge pages hold it; one write"
            f" counts {size // 4096} pages of 4 KiB"
        )
    few = bool(measurement.n_dirty_pages) and measurement.n_dirty_pages[-1] < _FEW_DIRTY
    if few and is_sampled:
        high = measurement.curve().high[-1] * measurement.page_size / (1 << 20)
        lines.append(
            f"only {measurement.n_dirty_pages[-1]} of {measurement.n_sampled_pages} samples were"
            f" dirty: all that is known is that at most {high:.3g} MiB were (95 %); use more"
            " --sample-pages or a longer --calc-time. Writes of what a page already holds do not"
            " show"
        )
    return lines


def _slow_passes(measurement: Measurement) -> list[str]:
    compares_ns = measurement.details.get("passes-ns", [])
    if not compares_ns:
        return []
    baseline_ns = measurement.details.get("baseline", {}).get("pass-ns", 0)
    first_ms = periods_ms(measurement.calc_time_ms)[0]
    limit_ns = PASS_SHARE_MAX * first_ms * 1_000_000
    usual_ns = median_low([baseline_ns, *compares_ns])
    slowest_ns = max(compares_ns)
    slowest = compares_ns.index(slowest_ns)
    periods = measurement.periods

    def took(which: str, ns: int) -> str:
        share = ns / (first_ms * 1_000_000)
        return (
            f"{which} took {format_duration(ns / 1e9)}, {share:.0%} of the first period"
            f" ({first_ms} ms), where 10 % is meant to be the most"
        )

    # Between two passes that are as slow, each page has the whole period to become dirty.
    lines = []
    if baseline_ns - usual_ns > limit_ns:
        error = min((baseline_ns - usual_ns) / (periods[0] * 1e6), 1)
        lines.append(
            f"{took('the baseline pass', baseline_ns)}: it stalled, and what it read last had less"
            " time to become dirty, so the dirty counts of the first periods are too low (the first"
            f" by up to {error:.0%}); measure again"
        )
    if slowest_ns - usual_ns > limit_ns:
        error = (slowest_ns - usual_ns) / (periods[slowest] * 1e6)
        lines.append(
            f"{took('a pass', slowest_ns)}: the one at {periods[slowest]} ms stalled, and what it"
            " read last had more time to become dirty, so its dirty count is too high (by up to"
            f" {error:.0%}); measure again"
        )
    longest_ns = max(baseline_ns, slowest_ns)
    if usual_ns > limit_ns or (longest_ns > limit_ns and not lines):
        cure = _FASTER[measurement.mode is Mode.PAGE_SAMPLING]
        lines.append(f"{took('a pass', longest_ns)}: {cure}")
    return lines


def _late_passes(measurement: Measurement) -> list[str]:
    starts_ns = measurement.details.get("periods-ns", [])
    schedule = periods_ms(measurement.calc_time_ms)
    late_ns = [
        exact_ns - due_ms * 1_000_000 for exact_ns, due_ms in zip(starts_ns, schedule, strict=False)
    ]
    if max(late_ns, default=0) <= LATE_NS_MAX:
        return []
    line = (
        f"a pass began {format_duration(max(late_ns) / 1e9)} late, for the machine was busy or"
        " the pass before it slow; the periods reported are the real ones"
    )
    if len(late_ns) == len(schedule) and late_ns[-1] > LATE_NS_MAX:
        line += (
            f", and the dirty rate is over the {format_duration(starts_ns[-1] / 1e9)} that passed"
        )
    return [line]


def _unreadable(measurement: Measurement) -> list[str]:
    unreadable = max(measurement.unreadable, default=0)
    if not unreadable:
        return []
    causes = measurement.details.get("unreadable-causes", {})
    share = unreadable / measurement.n_sampled_pages
    size = format_size(share * measurement.n_total_pages * measurement.page_size)
    found = in_words(causes)
    cures = "; ".join(_READABLE[cause] for cause in causes if cause in _READABLE)
    line = (
        f"up to {unreadable} samples of {measurement.n_sampled_pages} ({share:.2%}) could not be"
        " compared with the baseline, as they could not be read without disturbing the guest"
        f"{f' ({found})' if found else ''}: the dirty counts are without them, and the interval's"
        f" upper end takes all {size} of them for dirty{f'; {cures}' if cures else ''}"
    )
    return [line]
