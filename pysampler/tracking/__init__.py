# SPDX-License-Identifier: MIT
"""Exact tracking: the same Measurement as by sampling, but every written page is counted."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from pysampler.errors import MissingFeatureError, UsageError
from pysampler.measurement import Mode
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
from pysampler.tracking.full_comparison import FullComparison
from pysampler.tracking.memory import UntrackableError
from pysampler.tracking.probe import Finding, probe
from pysampler.tracking.soft_dirty import SoftDirty
from pysampler.tracking.userfaultfd import offer_userfaultfd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pysampler.ramblock import RAMBlock

__all__ = [
    "DirtyBitmap",
    "DirtyRing",
    "Finding",
    "FullComparison",
    "SoftDirty",
    "exact_observer",
    "offer_userfaultfd",
    "probe",
    "vcpu_threads",
]


def exact_observer(
    blocks: Sequence[RAMBlock],
    mode: Mode,
    *,
    pid: int | None = None,
    vcpus: Mapping[int, int] | None = None,
    threads: int = 1,
) -> DirtyBitmap | DirtyRing | SoftDirty | FullComparison:
    """Return the best that can be had for a mode.

    For ``dirty-bitmap`` that is userfaultfd, else soft-dirty bits, else a full comparison of
    content; the vector's ``x-pysampler.tracking`` says which. ``dirty-ring`` has no substitute.

    Args:
        blocks: what to track.
        mode: ``dirty-bitmap`` or ``dirty-ring``.
        pid: the process whose writes count; None for this one.
        vcpus: thread ids by vCPU number; None to go by the threads' names.
        threads: threads that read content.

    Raises:
        UsageError: another mode.
        MissingFeatureError: dirty-ring cannot be had here.
        SourceError: the memory cannot be tracked, or is tracked already.
    """
    if mode is Mode.DIRTY_RING:
        if vcpus is None:
            vcpus = vcpu_threads(os.getpid() if pid is None else pid)
        return DirtyRing(blocks, vcpus, pid=pid, threads=threads)
    if mode is not Mode.DIRTY_BITMAP:
        raise UsageError(f"mode {mode.value} is not exact tracking")
    try:
        return DirtyBitmap(blocks, pid=pid, threads=threads)
    except (MissingFeatureError, UntrackableError) as error:
        reason = str(error)
    with suppress(MissingFeatureError, UntrackableError):
        return SoftDirty(blocks, pid=pid, threads=threads)
    return FullComparison(blocks, threads=threads, reason=reason)
