# SPDX-License-Identifier: MIT
"""The C core, one thin typed function per C function; the only module that says ``lib.ps_``."""

from __future__ import annotations

import ctypes
import enum
import errno
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pysampler._native import ffi, lib
from pysampler.errors import MissingFeatureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    VfnArray = NDArray[np.uint64]
    HashArray = NDArray[np.uint64]
    StateArray = NDArray[np.uint8]
    BitArray = NDArray[np.uint8]

PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)

# linux/magic.h
TMPFS_MAGIC = 0x01021994
HUGETLBFS_MAGIC = 0x958458F6

HOST_PAGE_SIZE = os.sysconf("SC_PAGESIZE")  # the grain of exact tracking

_MAX_WAITING = 1024  # writes that can wait at full rings; more leave their messages in the kernel


class Hash(enum.IntEnum):
    """What is computed of a page."""

    TOUCH = lib.PS_HASH_TOUCH
    CONTENT = lib.PS_HASH_CONTENT
    READ = lib.PS_HASH_READ
    XXH64 = lib.PS_HASH_XXH64
    XXH3 = lib.PS_HASH_XXH3
    CRC32 = lib.PS_HASH_CRC32
    XXH32 = lib.PS_HASH_XXH32
    XXH3_128 = lib.PS_HASH_XXH3_128
    CRC32_ISAL = lib.PS_HASH_CRC32_ISAL


class Simd(enum.IntEnum):
    """Vector instructions a kernel may use."""

    BASE = lib.PS_SIMD_BASE
    AVX2 = lib.PS_SIMD_AVX2
    AVX512 = lib.PS_SIMD_AVX512


class PageState(enum.IntEnum):
    """Whether a page can be read without changing anything."""

    PRESENT = lib.PS_PAGE_PRESENT
    HOLE = lib.PS_PAGE_HOLE
    SWAPPED = lib.PS_PAGE_SWAPPED


class Pattern(enum.IntEnum):
    """Which page an emulated vCPU writes next."""

    IDLE = lib.PS_PATTERN_IDLE
    UNIFORM = lib.PS_PATTERN_UNIFORM
    HOTCOLD = lib.PS_PATTERN_HOTCOLD
    ZIPF = lib.PS_PATTERN_ZIPF
    SWEEP = lib.PS_PATTERN_SWEEP
    KV = lib.PS_PATTERN_KV


class Effect(enum.IntEnum):
    """What a write of an emulated vCPU does."""

    MARK = lib.PS_EFFECT_MARK
    SILENT = lib.PS_EFFECT_SILENT
    FREE = lib.PS_EFFECT_FREE


class KvWrite(enum.IntEnum):
    """What the operations of an emulated key-value store that are no reads do."""

    UPDATE = lib.PS_KV_UPDATE
    INSERT = lib.PS_KV_INSERT
    MODIFY = lib.PS_KV_MODIFY


def simd_best() -> Simd:
    """Return the widest vector instructions of this machine."""
    return Simd(lib.ps_simd_best())


@cache
def _zlib() -> tuple[Any, str]:
    """Return the address of the installed zlib's crc32() and zlib's version."""
    crc32, version = ffi.new("ps_crc32_fn *"), ffi.new("const char **")
    if lib.ps_find_zlib(crc32, version) < 0:
        raise MissingFeatureError("crc32 needs the zlib library, libz.so.1; install zlib1g")
    return crc32[0], ffi.string(version[0]).decode("ascii")


def zlib_version() -> str:
    """Return the version of the zlib that computes CRC-32.

    Raises:
        MissingFeatureError: there is none.
    """
    return _zlib()[1]


@cache
def _isal() -> Any:
    """Return the address of ISA-L's crc32_gzip_refl(), which the isal package exports."""
    try:
        from isal import isal_zlib  # noqa: PLC0415 - an extra

        library = ctypes.CDLL(isal_zlib.__file__)
        address = ctypes.cast(library.crc32_gzip_refl, ctypes.c_void_p).value
    except (ImportError, OSError, AttributeError) as error:
        raise MissingFeatureError(
            "ISA-L's CRC-32 needs the isal package; pip install 'pysampler[bench]'"
        ) from error
    return ffi.cast("ps_crc32_fn", address)


@dataclass(frozen=True)
class Hasher:
    """A page hash with its kernel chosen.

    Args:
        hash: which hash.
        simd: vector instructions to use; None for the widest of this machine.
        prefetch: hash mapped pages in fours while the next four are prefetched, which is faster;
            else one after another, as QEMU does.
    """

    hash: Hash
    simd: Simd | None = None
    prefetch: bool = True

    def struct(self) -> Any:
        """Return a new C struct ps_hasher; it must live as long as the call that uses it."""
        simd = simd_best() if self.simd is None else self.simd
        if simd > simd_best():
            raise MissingFeatureError(f"this machine has no {simd.name}")
        crc32 = ffi.NULL
        if self.hash is Hash.CRC32:
            crc32 = _zlib()[0]
        elif self.hash is Hash.CRC32_ISAL:
            crc32 = _isal()
        return ffi.new("struct ps_hasher *", (self.hash, simd, self.prefetch, crc32))


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def _u64(array: NDArray[np.uint64], what: str, *, writable: bool = False) -> Any:
    if array.dtype != np.uint64 or not array.flags.c_contiguous:
        raise TypeError(f"{what} must be a contiguous array of uint64")
    return ffi.from_buffer("uint64_t[]", array, require_writable=writable)


def hash_mapped(
    hasher: Hasher, base: Any, page_size: int, vfns: VfnArray, hashes: HashArray
) -> int:
    """Hash pages of memory mapped here; see ps_hash_mapped.

    Args:
        hasher: the page hash.
        base: a buffer of whole pages that covers every vfn.
        page_size: bytes, a power of two from 4096 to 65536.
        vfns: page numbers in ``base``, in the order in which they are hashed.
        hashes: takes the hashes; same length.

    Returns:
        How many pages were hashed; fewer than all when the next one raised SIGBUS.
    """
    memory = ffi.from_buffer(base)
    _check_range(memory, page_size, vfns)
    _check_pass(page_size, vfns, hashes)
    result = lib.ps_hash_mapped(
        hasher.struct(),
        memory,
        page_size,
        _u64(vfns, "vfns"),
        len(vfns),
        _u64(hashes, "hashes", writable=True),
    )
    return _check(result, "ps_hash_mapped")


def hash_remote(
    hasher: Hasher,
    pid: int,
    address: int,
    page_size: int,
    vfns: VfnArray,
    staging: Any,
    hashes: HashArray,
) -> int:
    """Hash pages of another process, copied through ``staging``; see ps_hash_remote.

    Returns:
        How many pages were hashed; fewer than all when the next one is not readable.

    Raises:
        ProcessLookupError: the process is gone.
        PermissionError: it may not be read.
    """
    _check_pass(page_size, vfns, hashes)
    copy = ffi.from_buffer(staging, require_writable=True)
    if len(copy) < page_size:
        raise ValueError("staging must hold a page")
    result = lib.ps_hash_remote(
        hasher.struct(),
        pid,
        address,
        page_size,
        _u64(vfns, "vfns"),
        len(vfns),
        copy,
        len(copy) // page_size,
        _u64(hashes, "hashes", writable=True),
    )
    return _check(result, f"process {pid}")


def hash_file(
    hasher: Hasher, fd: int, page_size: int, vfns: VfnArray, staging: Any, hashes: HashArray
) -> int:
    """Hash pages of a file, copied through ``staging`` by pread(); see ps_hash_file.

    Returns:
        How many pages were hashed; fewer than all when the next one is past the end.
    """
    _check_pass(page_size, vfns, hashes)
    copy = ffi.from_buffer(staging, require_writable=True)
    if len(copy) < page_size:
        raise ValueError("staging must hold a page")
    result = lib.ps_hash_file(
        hasher.struct(),
        fd,
        page_size,
        _u64(vfns, "vfns"),
        len(vfns),
        copy,
        _u64(hashes, "hashes", writable=True),
    )
    return _check(result, "ps_hash_file")


def compare_mapped(base: Any, kept: Any, page_size: int, vfns: VfnArray, *, prefetch: bool) -> int:
    """Return how many pages of memory mapped here differ from copies; see ps_compare_mapped.

    Raises:
        OSError: a page raised SIGBUS.
    """
    memory, copies = ffi.from_buffer(base), ffi.from_buffer(kept)
    if len(vfns) and (int(vfns.max()) + 1) * page_size > len(memory):
        raise IndexError("a vfn lies past the end of the buffer")
    if len(copies) < len(vfns) * page_size:
        raise ValueError("there is not a copy of each page")
    n_differ = ffi.new("uint64_t *")
    done = lib.ps_compare_mapped(
        memory, copies, page_size, _u64(vfns, "vfns"), len(vfns), prefetch, n_differ
    )
    if done < len(vfns):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT), "ps_compare_mapped")
    return int(n_differ[0])


def states_of_file(
    fd: int, page_size: int, vfns: VfnArray, order: NDArray[np.uint32]
) -> StateArray:
    """Return the PageState of pages of a file; ``order`` sorts ``vfns``. Moves fd's offset."""
    states = np.empty(len(vfns), dtype=np.uint8)
    _check(
        lib.ps_states_of_file(
            fd,
            page_size,
            _u64(vfns, "vfns"),
            ffi.from_buffer("uint32_t[]", order),
            len(vfns),
            ffi.from_buffer("uint8_t[]", states),
        ),
        "SEEK_DATA",
    )
    return states


def states_of_process(
    fd: int, address: int, page_size: int, vfns: VfnArray, order: NDArray[np.uint32]
) -> StateArray:
    """Return the PageState of pages of a process whose /proc/PID/pagemap is open as ``fd``."""
    states = np.empty(len(vfns), dtype=np.uint8)
    _check(
        lib.ps_states_of_process(
            fd,
            address,
            page_size,
            _u64(vfns, "vfns"),
            ffi.from_buffer("uint32_t[]", order),
            len(vfns),
            ffi.from_buffer("uint8_t[]", states),
        ),
        "pagemap",
    )
    return states


def mark_swapped(
    fd: int, offset: int, base: Any, page_size: int, vfns: VfnArray, states: StateArray
) -> None:
    """Turn PRESENT into SWAPPED for pages of a tmpfs file that are not in memory.

    Args:
        fd: the file.
        offset: where in it ``base`` begins, in bytes.
        base: a mapping of it that covers every vfn.
        page_size: bytes.
        vfns: page numbers in ``base``.
        states: their states, changed in place.
    """
    memory = ffi.from_buffer(base)
    _check_range(memory, page_size, vfns)
    _check(
        lib.ps_mark_swapped(
            fd,
            offset,
            memory,
            page_size,
            _u64(vfns, "vfns"),
            len(vfns),
            ffi.from_buffer("uint8_t[]", states, require_writable=True),
        ),
        "cachestat",
    )


def file_system(fd: int) -> int:
    """Return the magic number of the file system that holds ``fd``."""
    magic = ffi.new("int64_t *")
    _check(lib.ps_file_system(fd, magic), "fstatfs")
    return int(magic[0])


def address_of(buffer: Any) -> int:
    """Return the address of a buffer's first byte."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(buffer)))


def _check_range(memory: Any, page_size: int, vfns: VfnArray) -> None:
    if len(vfns) and (int(vfns.max()) + 1) * page_size > len(memory):
        raise IndexError("a vfn lies past the end of the buffer")


def _check_pass(page_size: int, vfns: VfnArray, hashes: HashArray) -> None:
    # The kernels would read past a page of another size.
    if page_size not in PAGE_SIZES:
        raise ValueError(f"page size {page_size} is not a power of two from 4096 to 65536")
    if len(vfns) != len(hashes):
        raise ValueError(f"{len(hashes)} hashes for {len(vfns)} vfns")


class UffdKind(enum.IntEnum):
    """How a userfaultfd answers a write to a protected page."""

    ASYNC = lib.PS_UFFD_ASYNC
    MESSAGES = lib.PS_UFFD_MESSAGES


def uffd_open(kind: UffdKind) -> int:
    """Open a userfaultfd of this process; see ps_uffd_open.

    Raises:
        OSError: EPERM, ENOSYS or EOPNOTSUPP.
    """
    return _check(lib.ps_uffd_open(kind), "userfaultfd")


def uffd_features(kind: UffdKind) -> int:
    """Return the feature bits of a kind."""
    return int(lib.ps_uffd_features(kind))


def uffd_copy(pid: int, fd: int) -> int:
    """Return a copy of another process's descriptor; see ps_uffd_copy."""
    return _check(lib.ps_uffd_copy(pid, fd), f"descriptor {fd} of process {pid}")


class Range(NamedTuple):
    """Memory of an address space that is tracked.

    Attributes:
        address: of its first byte.
        length: bytes, whole pages.
        first_bit: its first page's bit in the bitmap.
    """

    address: int
    length: int
    first_bit: int

    @property
    def end_bit(self) -> int:
        """The bit after its last page's."""
        return self.first_bit + self.length // HOST_PAGE_SIZE


def uffd_register(uffd: int, memory: Range) -> None:
    """Register memory for write-protection; see ps_uffd_register."""
    _check(lib.ps_uffd_register(uffd, memory.address, memory.length), "UFFDIO_REGISTER")


def uffd_unregister(uffd: int, memory: Range) -> None:
    """Give memory back as it was and wake all who wait for it."""
    _check(lib.ps_uffd_unregister(uffd, memory.address, memory.length), "UFFDIO_UNREGISTER")


def uffd_protect(uffd: int, memory: Range) -> None:
    """Write-protect registered memory, also the pages that do not exist yet."""
    _check(lib.ps_uffd_protect(uffd, memory.address, memory.length), "UFFDIO_WRITEPROTECT")


def protect_written(pagemap: int, memory: Range) -> None:
    """Protect again what was written of protected memory; see ps_protect_written."""
    _check(lib.ps_protect_written(pagemap, memory.address, memory.length), "PAGEMAP_SCAN")


def written_pages(pagemap: int, memory: Range, bitmap: BitArray) -> int:
    """Set the bits of pages written since they were protected; see ps_written_pages.

    Returns:
        How many bits were not set before.
    """
    bits = _bits(bitmap, [memory])
    return _check(
        lib.ps_written_pages(pagemap, _range(memory), HOST_PAGE_SIZE, bits), "PAGEMAP_SCAN"
    )


def soft_dirty_pages(pagemap: int, memory: Range, bitmap: BitArray) -> int:
    """Set the bits of pages that are soft-dirty; see ps_soft_dirty_pages.

    Returns:
        How many bits were not set before.
    """
    bits = _bits(bitmap, [memory])
    return _check(lib.ps_soft_dirty_pages(pagemap, _range(memory), HOST_PAGE_SIZE, bits), "pagemap")


class RingRequest(enum.IntEnum):
    """What may be asked of `ring_serve`."""

    HARVEST = lib.PS_RING_HARVEST
    RESET = lib.PS_RING_RESET
    STOP = lib.PS_RING_STOP


class RingSet:
    """A C struct ps_ring_set and everything that it points to.

    Args:
        uffd: a descriptor of kind MESSAGES.
        ranges: the memory under tracking.
        bitmap: has a bit for each of its pages.
        tids: the threads with a ring of their own.
        capacity: entries of a ring.
        harvest_full: whether a full ring is harvested at once.
    """

    def __init__(
        self,
        uffd: int,
        ranges: Sequence[Range],
        bitmap: BitArray,
        tids: Sequence[int],
        *,
        capacity: int,
        harvest_full: bool,
    ) -> None:
        n_rings = len(tids) + 1
        self._bitmap = _bits(bitmap, ranges)
        self._ranges = ffi.new("struct ps_range[]", list(ranges))
        self._entries = ffi.new("uint64_t[]", n_rings * capacity)
        self._waiting = ffi.new("struct ps_waiting[]", _MAX_WAITING)
        self._rings = ffi.new("struct ps_ring[]", n_rings)
        for i, tid in enumerate((*tids, 0)):
            self._rings[i].entries = self._entries + i * capacity
            self._rings[i].tid = tid
        self.struct = ffi.new(
            "struct ps_ring_set *",
            {
                "uffd": uffd,
                "harvest_full": harvest_full,
                "page_size": HOST_PAGE_SIZE,
                "n_ranges": len(ranges),
                "ranges": self._ranges,
                "bitmap": self._bitmap,
                "n_rings": n_rings,
                "rings": self._rings,
                "capacity": capacity,
                "max_waiting": _MAX_WAITING,
                "waiting": self._waiting,
            },
        )

    @property
    def n_pages(self) -> tuple[int, ...]:
        """Harvested pages of each ring, the last one being that of all other threads."""
        return tuple(self._rings[i].n_pages for i in range(self.struct.n_rings))

    @property
    def n_full(self) -> tuple[int, ...]:
        """How often each ring was found full."""
        return tuple(self._rings[i].n_full for i in range(self.struct.n_rings))

    @property
    def n_waiting(self) -> int:
        """Writes that wait at full rings."""
        return int(self.struct.n_waiting)


def ring_serve(rings: RingSet, request: int, reply: int) -> None:
    """Answer write-protect messages until asked to stop; see ps_ring_serve."""
    _check(lib.ps_ring_serve(rings.struct, request, reply), "userfaultfd")


def _range(memory: Range) -> Any:
    return ffi.new("struct ps_range *", memory)


def _bits(bitmap: BitArray, ranges: Sequence[Range]) -> Any:
    n = max((memory.end_bit for memory in ranges), default=0)
    if bitmap.dtype != np.uint8 or not bitmap.flags.c_contiguous or len(bitmap) * 8 < n:
        raise TypeError(f"bitmap must be a contiguous array of uint8 with {n} bits")
    return ffi.from_buffer("uint8_t[]", bitmap, require_writable=True)


class Pace:
    """Writes due at a steady rate, for tests of it with an invented clock; see ps_pace_due."""

    CARRY_NS: int = lib.PS_PACE_CARRY_NS

    def __init__(self, writes_per_second: int) -> None:
        self._struct = ffi.new("struct ps_pace *", (writes_per_second,))

    def due(self, now_ns: int) -> int:
        """Return how many writes are due at ``now_ns``, counted from 0."""
        return int(lib.ps_pace_due(self._struct, now_ns))


class KvStore(NamedTuple):
    """Slabs and mix of an emulated key-value store; see struct ps_kv."""

    item_at: NDArray[np.uint64]
    item_bytes: NDArray[np.uint32]
    item_class: NDArray[np.uint8]
    free_at: NDArray[np.uint64]
    reads: int
    write: KvWrite

    @property
    def n_keys(self) -> int:
        """Number of keys."""
        return len(self.item_at)


class Vcpu:
    """The state of one emulated vCPU; its memory must outlive its runs. See struct ps_vcpu."""

    def __init__(self, index: int, counter: NDArray[np.uint64]) -> None:
        """Make an idle vCPU that counts its writes in ``counter[0]``."""
        self._counter = counter
        self._store: KvStore | None = None
        self._struct = ffi.new("struct ps_vcpu *")
        self._struct.index = index
        self._struct.writes = _u64(counter, "counter")

    def set_work(
        self,
        *,
        address: int,
        stamps: NDArray[np.uint64] | None,
        n_pages: int,
        seed: int,
        pattern: Pattern,
        effect: Effect,
        writes_per_second: int,
        on_ns: int = 0,
        off_ns: int = 0,
        hot_pages: int = 1,
        hits: int = 0,
        theta: float = 1.0,
        stride: int = 1,
        store: KvStore | None = None,
    ) -> None:
        """Start a new sequence of writes; only while `run` is not under way."""
        struct = self._struct
        ffi.memmove(
            ffi.addressof(struct, "kv"), ffi.new("struct ps_kv *"), ffi.sizeof("struct ps_kv")
        )
        struct.n_ranks = n_pages if pattern is Pattern.ZIPF else 0
        if store is not None:
            kv = struct.kv
            kv.n_keys = struct.n_ranks = store.n_keys
            kv.item_at = _u64(store.item_at, "item_at")
            kv.item_bytes = ffi.from_buffer("uint32_t[]", store.item_bytes)
            kv.item_class = ffi.from_buffer("uint8_t[]", store.item_class)
            kv.free_at = _u64(store.free_at, "free_at")
            kv.reads, kv.write, kv.newest = store.reads, store.write, store.n_keys - 1
        self._store = store  # C points into its arrays
        self._stamps = stamps
        struct.base = ffi.cast("void *", address)
        struct.stamps = ffi.NULL if stamps is None else _u64(stamps, "stamps")
        struct.n_pages, struct.seed = n_pages, seed
        struct.pattern, struct.effect = pattern, effect
        struct.hot_pages, struct.hits = hot_pages, hits
        struct.theta, struct.stride = theta, stride
        struct.on_ns, struct.off_ns = on_ns, off_ns
        struct.pace = (writes_per_second, 0, 0)
        struct.draws = struct.position = 0

    def run(self, origin_ns: int, until_ns: int) -> None:
        """Write until CLOCK_MONOTONIC is ``until_ns``, or `interrupt`; see ps_vcpu_run."""
        lib.ps_vcpu_run(self._struct, origin_ns, until_ns)

    def interrupt(self) -> None:
        """Make `run` return, now and whenever it is called, until `resume`."""
        lib.ps_vcpu_interrupt(self._struct)

    def resume(self) -> None:
        """Take back `interrupt`."""
        self._struct.interrupt = 0


def fill(
    memory: Any, first_page: int, n_pages: int, seed: int, text_pages: int, text: bytes
) -> None:
    """Fill pages of ``memory`` with random bytes or text; see ps_fill.

    Args:
        memory: a writable buffer of whole pages of 4096 bytes.
        first_page: where to begin.
        n_pages: how many pages.
        seed: what the content is computed from, with the page number.
        text_pages: of 256 pages, how many are text.
        text: what stretches of text are cut from, at least 8192 bytes.
    """
    buffer = ffi.from_buffer(memory, require_writable=True)
    if len(text) < 8192 or (first_page + n_pages) * 4096 > len(buffer):
        raise ValueError("too short a text, or pages past the end of the memory")
    lib.ps_fill(buffer + first_page * 4096, first_page, n_pages, seed, text_pages, text, len(text))


# ---- pre-copy: what an array of each C struct looks like ----

PRECOPY_MODE = np.dtype(
    [("pages", "f8"), ("rate", "f8"), ("kind", "i4"), ("reserved", "i4")], align=True
)
PRECOPY_GUEST = np.dtype(
    [
        ("nonzero_pages", "f8"),
        ("zero_pages", "f8"),
        ("phase", "f8"),
        ("burst_period_ms", "f8"),
        ("burst_on_ms", "f8"),
        ("burst_phase_ms", "f8"),
        ("zero_page_ms", "f8"),
    ],
    align=True,
)
PRECOPY_CELL = np.dtype(
    [("bandwidth", "f8"), ("link", "f8"), ("downtime_limit_ms", "f8")], align=True
)
PRECOPY_OUTCOME = np.dtype(
    [
        ("total_ms", "f8"),
        ("downtime_ms", "f8"),
        ("sent_bytes", "f8"),
        ("converged", "i4"),
        ("iterations", "i4"),
    ],
    align=True,
)
PRECOPY_ROUND = np.dtype(
    [("now_ms", "f8"), ("remaining_pages", "f8"), ("sent_bytes", "f8"), ("threshold_bytes", "f8")],
    align=True,
)
PRECOPY_MODES: int = lib.PS_PRECOPY_MODES


class ModeKind(enum.IntEnum):
    """How the pages of a mode are written."""

    RANDOM = lib.PS_MODE_RANDOM
    SEQUENTIAL = lib.PS_MODE_SEQUENTIAL
    TABLE = lib.PS_MODE_TABLE


def _structs(array: NDArray[Any], name: str, dtype: np.dtype[Any]) -> Any:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"struct {name}: a contiguous array of its dtype is needed")
    return ffi.from_buffer(f"struct {name}[]", array)


def _doubles(array: NDArray[np.float64], what: str) -> Any:
    if array.dtype != np.float64 or not array.flags.c_contiguous or not np.isfinite(array).all():
        raise TypeError(f"{what} must be a contiguous array of finite float64")
    return ffi.from_buffer("double[]", array)


def precopy_grid(
    how: dict[str, float],
    guests: NDArray[Any],
    modes: NDArray[Any],
    knots_ms: NDArray[np.float64],
    knots_share: NDArray[np.float64],
    cells: NDArray[Any],
) -> NDArray[Any]:
    """Migrate each guest with each cell; see ps_precopy_grid.

    Args:
        how: members of struct ps_precopy.
        guests: PRECOPY_GUEST, shape [guests].
        modes: PRECOPY_MODE, shape [guests, modes].
        knots_ms: shape [knots].
        knots_share: shape [guests, knots].
        cells: PRECOPY_CELL, shape [cells].

    Returns:
        PRECOPY_OUTCOME, shape [guests, cells].
    """
    if len(modes) != len(guests) or knots_share.shape != (len(guests), len(knots_ms)):
        raise ValueError("modes and knots of each guest are needed")
    outcomes = np.zeros((len(guests), len(cells)), dtype=PRECOPY_OUTCOME)
    _check(
        lib.ps_precopy_grid(
            ffi.new("struct ps_precopy *", how),
            _structs(guests, "ps_precopy_guest", PRECOPY_GUEST),
            len(guests),
            _structs(modes, "ps_precopy_mode", PRECOPY_MODE),
            modes.shape[1],
            _doubles(knots_ms, "knots_ms"),
            _doubles(knots_share, "knots_share"),
            len(knots_ms),
            _structs(cells, "ps_precopy_cell", PRECOPY_CELL),
            len(cells),
            _structs(outcomes, "ps_precopy_outcome", PRECOPY_OUTCOME),
        ),
        "ps_precopy_grid",
    )
    return outcomes


def precopy_rounds(
    how: dict[str, float],
    guest: NDArray[Any],
    modes: NDArray[Any],
    knots_ms: NDArray[np.float64],
    knots_share: NDArray[np.float64],
    cell: NDArray[Any],
    max_rounds: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Migrate one guest with one cell; see ps_precopy_rounds. Arrays as above, one guest long.

    Returns:
        PRECOPY_OUTCOME, shape [1], and PRECOPY_ROUND, one per bitmap sync.
    """
    if len(guest) != 1 or len(cell) != 1 or modes.shape[0] != 1:
        raise ValueError("one guest and one cell are needed")
    outcome = np.zeros(1, dtype=PRECOPY_OUTCOME)
    rounds = np.zeros(max_rounds, dtype=PRECOPY_ROUND)
    n_rounds = _check(
        lib.ps_precopy_rounds(
            ffi.new("struct ps_precopy *", how),
            _structs(guest, "ps_precopy_guest", PRECOPY_GUEST),
            _structs(modes, "ps_precopy_mode", PRECOPY_MODE),
            modes.shape[1],
            _doubles(knots_ms, "knots_ms"),
            _doubles(knots_share, "knots_share"),
            len(knots_ms),
            _structs(cell, "ps_precopy_cell", PRECOPY_CELL),
            _structs(outcome, "ps_precopy_outcome", PRECOPY_OUTCOME),
            _structs(rounds, "ps_precopy_round", PRECOPY_ROUND),
            max_rounds,
        ),
        "ps_precopy_rounds",
    )
    return outcome, rounds[: min(n_rounds, max_rounds)]
