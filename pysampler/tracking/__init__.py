# SPDX-License-Identifier: MIT
"""Exact tracking: the same Measurement as by sampling, but every written page is counted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from pysampler.arguments import as_whole_number
from pysampler.errors import MissingFeatureError, UsageError
from pysampler.measurement import Mode
from pysampler.sampler import Sampler, as_blocks, check_calc_time, check_threads
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
from pysampler.tracking.full_comparison import FullComparison
from pysampler.tracking.memory import UntrackableError
from pysampler.tracking.probe import probe
from pysampler.tracking.soft_dirty import SoftDirty
from pysampler.tracking.userfaultfd import offer_userfaultfd
from pysampler.units import parse_duration_ms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from pysampler.ramblock import RAMBlock

__all__ = [
    "DirtyBitmap",
    "DirtyRing",
    "FullComparison",
    "SoftDirty",
    "exact_observer",
    "offer_userfaultfd",
    "probe",
    "track",
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
        vcpus: thread ids by vCPU number, as the process itself sees them; None to go by the
            threads' names.
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


def track(
    source: Sequence[RAMBlock] | RAMBlock | Buffer,
    *,
    mode: str = "dirty-bitmap",
    calc_time: float | str = 60,
    pid: int | None = None,
    vcpus: Mapping[int, int] | None = None,
    threads: int = 1,
) -> Sampler:
    """Return an exact measurement to iterate over, each period as it is measured.

    Args:
        source: RAMBlocks, or one, or any Python buffer; one that begins with a page, as
            mmap.mmap() gives it, can be tracked, any other is compared.
        mode: ``dirty-bitmap`` or ``dirty-ring``.
        calc_time: duration: seconds, or text such as ``"500ms"``; 50 ms to 4 h.
        pid: the process whose writes count; None for this one.
        vcpus: for dirty-ring, thread ids by vCPU number, as the process itself sees them; None
            to go by the threads' names.
        threads: threads that read content.

    Raises:
        UsageError: an argument is out of range.
        MissingFeatureError: the mode cannot be had here.
        SourceError: the memory cannot be tracked, or is tracked already.
    """
    calc_time_ms, unit = parse_duration_ms(str(calc_time), "calc-time")
    check_calc_time(calc_time_ms)
    if mode not in (Mode.DIRTY_BITMAP.value, Mode.DIRTY_RING.value):
        raise UsageError(f"mode must be dirty-bitmap or dirty-ring (got {mode!r})")
    observer = exact_observer(
        as_blocks(source),
        Mode(mode),
        pid=None if pid is None else as_whole_number(pid, "pid"),
        vcpus=None if vcpus is None else _check_vcpus(vcpus),
        threads=check_threads(threads),
    )
    return Sampler(observer, calc_time_ms, unit)


def _check_vcpus(vcpus: Mapping[int, int]) -> dict[int, int]:
    if not isinstance(vcpus, Mapping):
        raise UsageError(f"vcpus must be a mapping of thread ids (got {type(vcpus).__name__})")
    return {
        as_whole_number(vcpu, "vcpus: a number"): as_whole_number(tid, "vcpus: a thread id")
        for vcpu, tid in vcpus.items()
    }
