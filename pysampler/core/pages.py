# SPDX-License-Identifier: MIT
"""Page hashes, passes over pages, and which pages can be read without harm."""

from __future__ import annotations

import ctypes
import enum
import errno
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler._native import ffi, lib
from pysampler.core.seam import check, u64
from pysampler.errors import MissingFeatureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pysampler.core.seam import HashArray, StateArray, VfnArray


PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)

# linux/magic.h
TMPFS_MAGIC = 0x01021994

HUGETLBFS_MAGIC = 0x958458F6


class Hash(enum.IntEnum):
    """The hash functions of a page."""

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
    """Can the content of a page be read without changing anything? Up to HOLE it can."""

    PRESENT = lib.PS_PAGE_PRESENT
    HOLE = lib.PS_PAGE_HOLE
    SWAPPED = lib.PS_PAGE_SWAPPED
    FILE = lib.PS_PAGE_FILE
    USERFAULTFD = lib.PS_PAGE_USERFAULTFD
    CLOSED = lib.PS_PAGE_CLOSED
    SHARED = lib.PS_PAGE_SHARED  # AddressSpace calls it PRESENT, and keeps that it is shared


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
        u64(vfns, "vfns"),
        len(vfns),
        u64(hashes, "hashes", writable=True),
    )
    return check(result, "ps_hash_mapped")


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
        u64(vfns, "vfns"),
        len(vfns),
        copy,
        len(copy) // page_size,
        u64(hashes, "hashes", writable=True),
    )
    return check(result, f"process {pid}")


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
        u64(vfns, "vfns"),
        len(vfns),
        copy,
        u64(hashes, "hashes", writable=True),
    )
    return check(result, "ps_hash_file")


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
        memory, copies, page_size, u64(vfns, "vfns"), len(vfns), prefetch, n_differ
    )
    if done < len(vfns):
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT), "ps_compare_mapped")
    return int(n_differ[0])


def states_of_file(
    fd: int, page_size: int, vfns: VfnArray, order: NDArray[np.uint32]
) -> StateArray:
    """Return the PageState of pages of a file; ``order`` sorts ``vfns``. Moves fd's offset."""
    states = np.empty(len(vfns), dtype=np.uint8)
    check(
        lib.ps_states_of_file(
            fd,
            page_size,
            u64(vfns, "vfns"),
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
    check(
        lib.ps_states_of_process(
            fd,
            address,
            page_size,
            u64(vfns, "vfns"),
            ffi.from_buffer("uint32_t[]", order),
            len(vfns),
            ffi.from_buffer("uint8_t[]", states),
        ),
        "pagemap",
    )
    return states


def map_file(fd: int, offset: int, length: int) -> memoryview:
    """Return a read-only shared mapping of a file; see ps_map_file. It ends with its last user.

    Unlike mmap.mmap(), it keeps no descriptor.

    Args:
        fd: the file.
        offset: of its first byte in the file, a multiple of the size of the file's pages.
        length: bytes.
    """
    address = ffi.new("void **")
    check(lib.ps_map_file(fd, offset, length, address), "mmap")
    whole = ffi.gc(ffi.cast("char *", address[0]), lambda base: lib.ps_unmap(base, length))
    return memoryview(ffi.buffer(whole, length)).toreadonly()


def swap_in_use() -> bool:
    """Return whether anything is swapped out on this host."""
    return bool(lib.ps_swap_in_use())


def mark_swapped(
    fd: int, offset: int, base: Any, page_size: int, vfns: VfnArray, states: StateArray
) -> None:
    """Turn PRESENT into SWAPPED for pages of a tmpfs file that are not in memory.

    Args:
        fd: the file.
        offset: where in it ``base`` begins, in bytes.
        base: a mapping of it that covers every vfn; None where it is not mapped.
        page_size: bytes.
        vfns: page numbers in ``base``.
        states: their states, changed in place.
    """
    memory = ffi.NULL if base is None else ffi.from_buffer(base)
    if base is not None:
        _check_range(memory, page_size, vfns)
    check(
        lib.ps_mark_swapped(
            fd,
            offset,
            memory,
            page_size,
            u64(vfns, "vfns"),
            len(vfns),
            ffi.from_buffer("uint8_t[]", states, require_writable=True),
        ),
        "cachestat",
    )


def file_system(fd: int) -> int:
    """Return the magic number of the file system that holds ``fd``."""
    magic = ffi.new("int64_t *")
    check(lib.ps_file_system(fd, magic), "fstatfs")
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
