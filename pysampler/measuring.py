# SPDX-License-Identifier: MIT
"""sample(), measure() and track(): the one place where a mode becomes an observer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from pysampler.arguments import as_whole_number
from pysampler.errors import MissingFeatureError, UsageError
from pysampler.memory.ramblock import RAMBlock
from pysampler.memory.source.buffer import buffer_block
from pysampler.sampling.compression import CompressedSampling
from pysampler.sampling.observer import check_threads
from pysampler.sampling.page_sampling import PageSampling
from pysampler.sampling.plan import PROFILES, Profile
from pysampler.sampling.sampler import Sampler, check_calc_time
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
from pysampler.tracking.full_comparison import FullComparison
from pysampler.tracking.guest_log import NoLogError
from pysampler.tracking.memory import UntrackableError
from pysampler.tracking.soft_dirty import SoftDirty
from pysampler.tracking.vcpu_log import VcpuLog
from pysampler.units import parse_duration_ms
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pysampler.sampling.observer import Observer
    from pysampler.vector.measurement import Measurement


def as_blocks(source: Sequence[RAMBlock] | RAMBlock | Buffer) -> list[RAMBlock]:
    """Return the RAMBlocks of the Python API's argument ``source``."""
    if isinstance(source, RAMBlock):
        return [source]
    if isinstance(source, (list, tuple)):
        for block in source:
            if not isinstance(block, RAMBlock):
                raise UsageError(
                    f"source: a list has RAMBlocks in it, not {type(block).__name__};"
                    " buffer_block() makes one of a buffer"
                )
        return list(source)
    return [buffer_block(cast("Buffer", source))]


def exact_observer(
    blocks: Sequence[RAMBlock],
    mode: Mode,
    *,
    pid: int | None = None,
    vcpus: Mapping[int, int] | None = None,
    threads: int = 1,
) -> VcpuLog | DirtyBitmap | DirtyRing | SoftDirty | FullComparison:
    """Return the best observer that a mode can have here.

    For an emulated guest that is the log that its vCPUs keep, unless the guest reads that itself.
    For other memory and ``dirty-bitmap`` it is userfaultfd, else soft-dirty bits, else a full
    comparison of content. For ``dirty-ring`` it is userfaultfd, and nothing else. The vector's
    ``x-pysampler.tracking`` says which.

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
    no_log = ""
    if mode in (Mode.DIRTY_BITMAP, Mode.DIRTY_RING):
        try:
            return VcpuLog(blocks, mode, pid=pid, threads=threads)
        except NoLogError as error:
            no_log = str(error)
    if mode is Mode.DIRTY_RING:
        if vcpus is None:
            vcpus = vcpu_threads(os.getpid() if pid is None else pid)
        return DirtyRing(blocks, vcpus, pid=pid, threads=threads, reason=no_log)
    if mode is not Mode.DIRTY_BITMAP:
        raise UsageError(f"mode {mode.value} is not exact tracking")
    try:
        return DirtyBitmap(blocks, pid=pid, threads=threads, reason=no_log)
    except (MissingFeatureError, UntrackableError) as error:
        reason = str(error)
    with suppress(MissingFeatureError, UntrackableError):
        return SoftDirty(blocks, pid=pid, threads=threads)
    return FullComparison(blocks, threads=threads, reason=reason)


def make_observer(
    blocks: Sequence[RAMBlock],
    mode: Mode,
    *,
    profile: Profile = PROFILES["qemu"],
    sample_pages: int | None = None,
    seed: int | None = None,
    codecs: tuple[str, ...] = (),
    n_compares: int = 0,
    pid: int | None = None,
    vcpus: Mapping[int, int] | None = None,
    threads: int = 1,
) -> Observer:
    """Return the observer of a mode.

    Args:
        blocks: what to watch.
        mode: how dirty pages are found.
        profile: of ``page-sampling``: how pages are drawn and hashed.
        sample_pages: of ``page-sampling``: samples per GiB; None for the profile's own.
        seed: of ``page-sampling``: repeats a draw; None for a new one.
        codecs: with ``page-sampling``, those whose ratio and speed are measured as well.
        n_compares: how many compare passes there will be, for them.
        pid: of the exact modes: the process whose writes count; None for this one.
        vcpus: of ``dirty-ring``: as of `exact_observer`.
        threads: reading threads.

    Raises:
        UsageError: a number is out of range.
        MissingFeatureError: the mode cannot be had here.
        SourceError: the memory cannot be read, or not be tracked, or is tracked already.
    """
    if mode is not Mode.PAGE_SAMPLING:
        return exact_observer(blocks, mode, pid=pid, vcpus=vcpus, threads=threads)
    sampling = PageSampling(
        blocks, profile=profile, sample_pages=sample_pages, seed=seed, threads=threads
    )
    return CompressedSampling(sampling, codecs, n_compares) if codecs else sampling


def measure(
    source: Sequence[RAMBlock] | RAMBlock | Buffer,
    *,
    calc_time: float | str = 60,
    sample_pages: int | None = None,
    profile: str = "qemu",
    seed: int | None = None,
    threads: int = 1,
) -> Sampler:
    """Return a measurement to iterate over, each period as it is measured.

    Args:
        source: RAMBlocks, or one, or any Python buffer.
        calc_time: duration: seconds, or text such as ``"500ms"``; 50 ms to 4 h.
        sample_pages: samples per GiB, 128 to 16384; None for the profile's own.
        profile: ``qemu``, ``qemu-7`` or ``fast``.
        seed: repeats a draw of pages; None draws anew.
        threads: reading threads.

    Raises:
        UsageError: an argument is out of range.
        SourceError: a RAMBlock cannot be read, or there is nothing to sample.
    """
    calc_time_ms, unit = parse_duration_ms(str(calc_time), "calc-time")
    check_calc_time(calc_time_ms)
    if not isinstance(profile, str) or profile not in PROFILES:
        raise UsageError(f"profile must be one of {', '.join(PROFILES)} (got {profile!r})")
    observer = make_observer(
        as_blocks(source),
        Mode.PAGE_SAMPLING,
        profile=PROFILES[profile],
        sample_pages=None
        if sample_pages is None
        else as_whole_number(sample_pages, "sample-pages"),
        seed=None if seed is None else as_whole_number(seed, "seed"),
        threads=check_threads(threads),
    )
    return Sampler(observer, calc_time_ms, unit)


def sample(
    source: Sequence[RAMBlock] | RAMBlock | Buffer,
    *,
    calc_time: float | str = 60,
    sample_pages: int | None = None,
    profile: str = "qemu",
    seed: int | None = None,
    threads: int = 1,
) -> Measurement:
    """Sample memory for ``calc_time`` and return the vector. Arguments as of `measure`.

    Raises:
        UsageError: an argument is out of range.
        SourceError: a RAMBlock cannot be read, or there is nothing to sample.
        MeasurementInterruptedError: memory went away; it carries the periods before that.
    """
    with measure(
        source,
        calc_time=calc_time,
        sample_pages=sample_pages,
        profile=profile,
        seed=seed,
        threads=threads,
    ) as sampler:
        *_, measurement = sampler
    return measurement


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
    observer = make_observer(
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
