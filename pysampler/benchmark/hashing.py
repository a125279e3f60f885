# SPDX-License-Identifier: MIT
"""The cost of reading and hashing a page, by every hash and every way to reach it."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler import core
from pysampler.benchmark.harness import Timing, run_rounds
from pysampler.benchmark.memory import Region
from pysampler.core import Hash, Hasher, Simd
from pysampler.errors import MissingFeatureError, SourceError, UsageError
from pysampler.host import machine
from pysampler.qemu.dirty_rate import PAGE_SIZE, SAMPLE_PAGES_MAX
from pysampler.units import GIB, MIB, format_size
from pysampler.vector.schedule import FIRST_PERIOD_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

COLD_PAGES = 8192  # of one timing: 32 MiB, a few ms
_CACHED_PAGES = 4  # 16 KiB: half of a usual L1 data cache
_COMPARED_PAGES = 64  # with their copies 512 KiB: in the L2 cache; one call costs as much as ten
_CACHED_ROUNDS = 1024
_STAGING_PAGES = 64

# What a pass may take of the first period.
PASS_SHARE = 0.1

# name -> (hash, the SIMD level it is held to); QEMU's own loop is the scalar XXH64.
HASHES: dict[str, tuple[Hash, Simd | None]] = {
    "read": (Hash.READ, None),
    "xxh3": (Hash.XXH3, None),
    "xxh3-128": (Hash.XXH3_128, None),
    "xxh64": (Hash.XXH64, None),
    "xxh64-scalar": (Hash.XXH64, Simd.BASE),
    "xxh32": (Hash.XXH32, None),
    "crc32-isal": (Hash.CRC32_ISAL, None),
    "crc32-zlib": (Hash.CRC32, None),
}
MEMCMP = "memcmp"


@dataclass(frozen=True)
class HashCase:
    """One way to go through pages.

    Attributes:
        hash: a name of HASHES, or ``memcmp`` with a kept copy.
        cold: pages at random, in no cache; else four pages in the L1 cache (for memcmp: pages and
            their copies in the L2 cache).
        huge: memory of 2 MiB pages; else of 4 KiB pages.
        prefetch: pages to come are prefetched while others are hashed.
        remote: copied by process_vm_readv; else read through a mapping.
        threads: threads that share the pages.
    """

    hash: str
    cold: bool = True
    huge: bool = False
    prefetch: bool = False
    remote: bool = False
    threads: int = 1


@dataclass(frozen=True)
class Result:
    """What a case took.

    Attributes:
        case: the case.
        ns_per_page: median.
        spread: half the interquartile range over the median.
        unstable: whether the spread forbids comparing.
    """

    case: HashCase
    ns_per_page: float
    spread: float
    unstable: bool

    @property
    def gb_per_s(self) -> float:
        """Return 10^9 bytes a second."""
        return PAGE_SIZE / self.ns_per_page

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object."""
        case = self.case
        return {
            "hash": case.hash,
            "pages": "cold" if case.cold else "cache",
            "backing": "2M" if case.huge else "4K",
            "prefetch": case.prefetch,
            "access": "process_vm_readv" if case.remote else "mapping",
            "threads": case.threads,
            "ns-per-page": round(self.ns_per_page, 1),
            "gb-per-s": round(self.gb_per_s, 2),
            "spread": round(self.spread, 4),
            "unstable": self.unstable,
        }


def cases(threads: int, *, huge: bool = True) -> list[HashCase]:
    """Return the cases that are worth a column, for up to ``threads`` threads."""
    found = []
    for name in (*HASHES, MEMCMP):
        found.append(HashCase(name, cold=False))
        for backing in (False, True) if huge else (False,):
            found += [HashCase(name, huge=backing, prefetch=prefetch) for prefetch in (False, True)]
        if name != MEMCMP:
            found.append(HashCase(name, remote=True))
            found += [HashCase(name, prefetch=True, threads=n) for n in range(2, threads + 1)]
    return found


def missing_hashes() -> dict[str, str]:
    """Return the hashes that this machine has not, each with the reason."""
    return {name: reason for name in HASHES if (reason := _why_missing(name))}


def _why_missing(name: str) -> str:
    try:
        Hasher(*HASHES[name]).struct()
    except MissingFeatureError as error:
        return str(error)
    return ""


class HashBenchmark:
    """Times all cases.

    Args:
        memory: bytes of each region that is read; a multiple of 2 MiB, 128 MiB or more.
        threads: most threads that read together.

    Attributes:
        skipped: one line for each thing that this machine has not.

    Raises:
        UsageError: fewer than 128 MiB.
        SourceError: there is not so much memory.
    """

    def __init__(self, memory: int, threads: int) -> None:
        length = memory // (2 * MIB) * 2 * MIB
        if length < 128 * MIB:
            raise UsageError(f"memory must be at least 128 MiB (got {format_size(memory)})")
        needed, available = 2 * length + GIB // 4, machine.available_bytes()
        if needed > available:
            raise SourceError(
                f"two regions of {format_size(length)} do not fit in the"
                f" {format_size(available)} that are free: use less --memory"
            )
        self._regions = {False: Region(length, huge=False)}
        missing = missing_hashes()
        self.skipped = [f"{name}: {reason}" for name, reason in missing.items()]
        try:
            self._regions[True] = Region(length, huge=True)
        except MissingFeatureError as error:
            self.skipped.append(str(error))
        self._pool = ThreadPoolExecutor(threads)
        self._cases = [
            case for case in cases(threads, huge=True in self._regions) if case.hash not in missing
        ]
        self._timings = [self._timing(case) for case in self._cases]

    def run(self, rounds: int) -> Iterator[int]:
        """Time every case ``rounds`` times; yields after each round."""
        with self._pool:
            yield from run_rounds(self._timings, rounds)

    def results(self) -> list[Result]:
        """Return what the cases took."""
        return [
            Result(case, timing.median, timing.spread, timing.unstable)
            for case, timing in zip(self._cases, self._timings, strict=True)
        ]

    def _timing(self, case: HashCase) -> Timing:
        region = self._regions[case.huge]
        if case.cold:
            pages = COLD_PAGES
            take: Callable[[], NDArray[np.uint64]] = lambda: region.cold(pages)  # noqa: E731
        else:
            pages = _CACHED_PAGES * _CACHED_ROUNDS
            cached = np.tile(np.arange(_CACHED_PAGES, dtype=np.uint64), _CACHED_ROUNDS)
            take = lambda: cached  # noqa: E731
        if case.hash == MEMCMP:
            return Timing(self._memcmp(region, case, pages), pages)
        hasher = Hasher(*HASHES[case.hash], prefetch=case.prefetch)
        hashes = np.empty(pages, dtype=np.uint64)
        if case.remote:
            staging = np.empty((_STAGING_PAGES, PAGE_SIZE), dtype=np.uint8)
            pid, address = os.getpid(), region.address
            return Timing(
                lambda: core.hash_remote(hasher, pid, address, PAGE_SIZE, take(), staging, hashes),
                pages,
            )
        memory = region.pages
        if case.threads == 1:
            return Timing(
                lambda: core.hash_mapped(hasher, memory, PAGE_SIZE, take(), hashes), pages
            )

        def share(vfns: NDArray[np.uint64]) -> int:
            return core.hash_mapped(hasher, memory, PAGE_SIZE, vfns, np.empty_like(vfns))

        return Timing(
            lambda: list(self._pool.map(share, np.array_split(take(), case.threads))),
            pages,
            time.perf_counter_ns,
        )

    def _memcmp(self, region: Region, case: HashCase, pages: int) -> Callable[[], object]:
        # Always the same pages, for each has its copy; every other case evicts them.
        vfns = region.cold(pages if case.cold else _COMPARED_PAGES).copy()
        kept = region.pages[vfns.astype(np.intp)]
        times = pages // len(vfns)
        return lambda: [
            core.compare_mapped(region.pages, kept, PAGE_SIZE, vfns, prefetch=case.prefetch)
            for _ in range(times)
        ]


@dataclass(frozen=True)
class PassCost:
    """What one pass over a guest costs with a hash.

    Attributes:
        hash: its name.
        prefetch: whether pages are prefetched.
        milliseconds: one pass, one thread.
        sample_pages: the most samples per GiB with which a pass takes at most a tenth of the
            first period; 0 when there is none within the limits.
    """

    hash: str
    prefetch: bool
    milliseconds: float
    sample_pages: int


def pass_cost(result: Result, guest_memory: int, sample_pages: int) -> PassCost:
    """Return the cost of a pass over a guest.

    Args:
        result: a cold case.
        guest_memory: bytes.
        sample_pages: samples per GiB.
    """
    n_samples = guest_memory * sample_pages // GIB
    budget_ns = PASS_SHARE * FIRST_PERIOD_MS * 1e6
    fits = int(budget_ns / result.ns_per_page * GIB / guest_memory)
    return PassCost(
        hash=result.case.hash,
        prefetch=result.case.prefetch,
        milliseconds=n_samples * result.ns_per_page / 1e6,
        sample_pages=min(fits, SAMPLE_PAGES_MAX),
    )
