# SPDX-License-Identifier: MIT
"""The C core, one thin typed function per C function; the only module that says ``lib.ps_``."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler._native import ffi, lib
from pysampler.errors import MissingFeatureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    VfnArray = NDArray[np.uint64]
    HashArray = NDArray[np.uint64]
    StateArray = NDArray[np.uint8]


PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)

# linux/magic.h
TMPFS_MAGIC = 0x01021994
HUGETLBFS_MAGIC = 0x958458F6


class Hash(enum.IntEnum):
    """What is computed of a page."""

    TOUCH = lib.PS_HASH_TOUCH
    READ = lib.PS_HASH_READ
    XXH64 = lib.PS_HASH_XXH64
    XXH3 = lib.PS_HASH_XXH3
    CRC32 = lib.PS_HASH_CRC32


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


@dataclass(frozen=True)
class Hasher:
    """A page hash with its kernel chosen.

    Args:
        hash: which hash.
        simd: vector instructions to use; None for the widest of this machine.
        prefetch: prefetch pages to come, line by line, while one is hashed (mapped pages only).
    """

    hash: Hash
    simd: Simd | None = None
    prefetch: bool = True

    def struct(self) -> Any:
        """Return a new C struct ps_hasher; it must live as long as the call that uses it."""
        simd = simd_best() if self.simd is None else self.simd
        if simd > simd_best():
            raise MissingFeatureError(f"this machine has no {simd.name}")
        crc32 = _zlib()[0] if self.hash is Hash.CRC32 else ffi.NULL
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


def states_of_process(fd: int, address: int, page_size: int, vfns: VfnArray) -> StateArray:
    """Return the PageState of pages of a process whose /proc/PID/pagemap is open as ``fd``."""
    states = np.empty(len(vfns), dtype=np.uint8)
    _check(
        lib.ps_states_of_process(
            fd,
            address,
            page_size,
            _u64(vfns, "vfns"),
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
