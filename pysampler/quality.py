# SPDX-License-Identifier: MIT
"""What a careful reader of a measurement should be told, each with its cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.measurement import Mode
from pysampler.schedule import periods_ms
from pysampler.units import format_duration

if TYPE_CHECKING:
    from pysampler.measurement import Measurement

# A pass that takes longer is no snapshot of a moment of the first period.
PASS_SHARE_MAX = 0.1

# A later start than this is the machine's doing, not the scheduler's.
LATE_NS_MAX = 5_000_000

_FEW_DIRTY = 10

_FASTER = {
    True: "use fewer --sample-pages, more --threads or --profile fast",
    False: "--mode page-sampling takes less",
}


def remarks(measurement: Measurement) -> list[str]:
    """Return one line for each thing that makes a measurement less than it seems."""
    details = measurement.details
    is_sampled = measurement.mode is Mode.PAGE_SAMPLING
    lines = []
    schedule = periods_ms(measurement.calc_time_ms)
    slowest_ns = max(details.get("passes-ns", []), default=0)
    if slowest_ns > PASS_SHARE_MAX * schedule[0] * 1_000_000:
        share = slowest_ns / (schedule[0] * 1_000_000)
        lines.append(
            f"a pass took {format_duration(slowest_ns / 1e9)}, {share:.0%} of the first period"
            f" ({schedule[0]} ms), where 10 % is meant to be the most: {_FASTER[is_sampled]}"
        )
    else:
        late_ns = max(
            (
                exact_ns - due_ms * 1_000_000
                for exact_ns, due_ms in zip(details.get("periods-ns", []), schedule, strict=False)
            ),
            default=0,
        )
        if late_ns > LATE_NS_MAX:
            lines.append(
                f"a pass began {format_duration(late_ns / 1e9)} late, for the machine was busy;"
                " the periods reported are the real ones"
            )
    unreadable = max(details.get("unreadable", []), default=0)
    if unreadable:
        lines.append(
            f"up to {unreadable} samples of {measurement.n_sampled_pages} could not be read"
            " without disturbing the guest (swapped out, or closed to reading), and count as they"
            " were seen last"
        )
    if details.get("tracking") == "full-comparison":
        why = details.get("tracking-reason")
        lines.append(
            "writes could not be tracked, so the content of all pages was compared: writes of what"
            f" a page already holds do not show{f' ({why})' if why else ''}"
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
