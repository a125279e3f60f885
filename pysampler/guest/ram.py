# SPDX-License-Identifier: MIT
"""The guest's RAM: sealed memfds as QEMU's memory-backend-memfd makes them, partly filled."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from pysampler import core
from pysampler.errors import MissingFeatureError, SourceError, UsageError
from pysampler.host.machine import available_bytes as available_memory
from pysampler.units import MIB, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

PAGE_SIZE = core.GUEST_PAGE_SIZE
HUGE_PAGE_SIZE = 2 * MIB
MAX_LENGTH = 1 << 62  # no file can be longer
MAIN_IDSTR = "pc.ram"

# QEMU gives all its memfds this name; what follows the colon here tells blocks apart.
MEMFD_NAME = "memory-backend-memfd"

# What Python, its threads and the tracking of writes may need beside the guest's RAM.
_HEADROOM = 64 * MIB

# Pages filled by one C call: long enough to make the call's cost vanish.
_FILL_PAGES = 16384


class Content(str, Enum):
    """The content of RAM that is not zero; the ratios are zlib's at level 1, page by page."""

    RANDOM = "random"  # 1.0: does not compress
    TEXT = "text"  # 2.2: words
    MIXED = "mixed"  # one page in two is text: 1.4


_TEXT_PAGES_OF_256 = {Content.RANDOM: 0, Content.MIXED: 128, Content.TEXT: 256}


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A RAMBlock that is asked for.

    Attributes:
        idstr: its name.
        length: bytes, whole pages.
    """

    idstr: str
    length: int


@dataclass(frozen=True, slots=True)
class Block:
    """A RAMBlock of the guest.

    Attributes:
        idstr: its name.
        length: bytes.
        page_size: of the backing, bytes; the guest's own pages are always 4096.
        fd: its memfd.
        address: where the vCPUs write it, in this process.
        memory: the mapping at that address, writable.
        stamps: per page of 4096 bytes, CLOCK_MONOTONIC ns of its last write, 0 for never; None
            when truth is not kept.
    """

    idstr: str
    length: int
    page_size: int
    fd: int
    address: int
    memory: memoryview
    stamps: NDArray[np.uint64] | None


class SharedArray:
    """Numbers in a memfd, for anyone to map through /proc/PID/fd.

    Attributes:
        fd: the memfd.
        array: its numbers.
    """

    def __init__(self, name: str, n: int) -> None:
        self.fd = _memfd(name, max(n, 1) * 8, 0)
        self._map = mmap.mmap(self.fd, max(n, 1) * 8)
        self.array: NDArray[np.uint64] = np.frombuffer(self._map, dtype=np.uint64)

    def close(self) -> None:
        """Close the memfd; its memory goes with the last use of `array`."""
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Ram:
    """All RAMBlocks of a guest.

    Attributes:
        blocks: the main one first.
        truth: stamps of all pages, block after block; None when not kept.
    """

    blocks: tuple[Block, ...]
    truth: SharedArray | None

    def close(self) -> None:
        """Close the memfds; no vCPU may run. Memory goes with the last use of a mapping."""
        for block in self.blocks:
            with suppress(BufferError):  # someone still looks at it
                block.memory.release()
            os.close(block.fd)
        if self.truth is not None:
            self.truth.close()


AnyBlock = TypeVar("AnyBlock", BlockSpec, Block)


def named(blocks: Sequence[AnyBlock], idstr: str | None) -> AnyBlock:
    """Return the block of a name, the main one for None.

    Raises:
        UsageError: there is no such block.
    """
    for block in blocks:
        if idstr in {None, block.idstr}:
            return block
    names = ", ".join(block.idstr for block in blocks)
    raise UsageError(f"block={idstr}: no such block; there is {names}")


def free_huge_pages() -> int:
    """Return how many huge pages of 2 MiB are free and not promised to anyone."""
    directory = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    try:
        with open(f"{directory}/free_hugepages", encoding="ascii") as file:
            free = int(file.read())
        with open(f"{directory}/resv_hugepages", encoding="ascii") as file:
            return free - int(file.read())
    except OSError:
        return 0


def allocate(
    specs: Sequence[BlockSpec],
    *,
    zero: float = 0.0,
    content: Content = Content.RANDOM,
    seed: int = 0,
    huge: bool = False,
    truth: bool = False,
    reachable: int | None = None,
) -> Ram:
    """Make and fill the guest's RAM.

    Args:
        specs: the blocks, the main one first.
        zero: fraction of each block, at its end, that is left a hole.
        content: the content of the rest.
        seed: of the content.
        huge: back it with huge pages of 2 MiB.
        truth: keep the time of each page's last write.
        reachable: bytes that can ever be in memory, where the workloads do not reach all of
            it; None for all.

    Raises:
        UsageError: a length that is no whole number of pages, a name twice.
        SourceError: there is not that much memory.
        MissingFeatureError: there are not enough huge pages.
    """
    page_size = HUGE_PAGE_SIZE if huge else PAGE_SIZE
    _check_specs(specs, page_size)
    total = sum(spec.length for spec in specs)
    n_pages = total // PAGE_SIZE
    if huge:
        needed, free = total // HUGE_PAGE_SIZE, free_huge_pages()
        if needed > free:
            raise MissingFeatureError(
                f"--huge needs {needed} free huge pages of 2 MiB and there are {free}; "
                f"as root: sysctl vm.nr_hugepages={needed}"
            )
    else:
        memory = (total if reachable is None else reachable) + truth * n_pages * 8 + _HEADROOM
        available = available_memory()
        if memory > available:
            raise SourceError(
                f"the guest can grow to {format_size(memory)} and {format_size(available)} are "
                "available; give it less --memory, or workloads a smaller ws"
            )
    shared = SharedArray("pysampler-truth", n_pages) if truth else None
    blocks: list[Block] = []
    first = 0
    for spec in specs:
        count = spec.length // PAGE_SIZE
        stamps = None if shared is None else shared.array[first : first + count]
        block = _map_block(spec, page_size, stamps)
        # Whole huge pages, or their zero part would not be a hole.
        filled = round(spec.length * (1 - zero) / page_size) * page_size
        _fill(block, filled // PAGE_SIZE, content, (seed + len(blocks)) % (1 << 64))
        blocks.append(block)
        first += count
    return Ram(tuple(blocks), shared)


def _check_specs(specs: Sequence[BlockSpec], page_size: int) -> None:
    names = [spec.idstr for spec in specs]
    for spec in specs:
        if not spec.length or spec.length % page_size:
            raise UsageError(
                f"{spec.idstr}: {spec.length} bytes are no whole number of pages of "
                f"{format_size(page_size)}"
            )
        if spec.length > MAX_LENGTH:
            raise UsageError(
                f"{spec.idstr}: {format_size(spec.length)} are more than the"
                f" {format_size(MAX_LENGTH)} that a block can have"
            )
        if names.count(spec.idstr) > 1:
            raise UsageError(f"{spec.idstr}: two blocks of this name")


def _memfd(name: str, length: int, flags: int) -> int:
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, length)
    # As QEMU seals them: a vCPU never meets the SIGBUS of a file that was truncated.
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def _map_block(spec: BlockSpec, page_size: int, stamps: NDArray[np.uint64] | None) -> Block:
    flags = os.MFD_HUGETLB | os.MFD_HUGE_2MB if page_size == HUGE_PAGE_SIZE else 0
    fd = _memfd(f"{MEMFD_NAME}:{spec.idstr}", spec.length, flags)
    try:
        mapping = mmap.mmap(fd, spec.length)
    except OSError as error:
        os.close(fd)
        raise SourceError(
            f"{spec.idstr}: cannot map {format_size(spec.length)}: {error}"
        ) from error
    mapping.madvise(mmap.MADV_DONTDUMP)
    memory = memoryview(mapping)
    return Block(spec.idstr, spec.length, page_size, fd, core.address_of(memory), memory, stamps)


def _fill(block: Block, n_pages: int, content: Content, seed: int) -> None:
    def fill_slice(first: int) -> None:
        count = min(_FILL_PAGES, n_pages - first)
        core.fill(block.memory, first, count, seed, _TEXT_PAGES_OF_256[content], sample_text())

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        # list() brings exceptions of the threads here.
        list(pool.map(fill_slice, range(0, n_pages, _FILL_PAGES)))


@cache
def sample_text() -> bytes:
    """Return half a MiB of words that follow Zipf's law, always the same."""
    rng = random.Random(1)  # noqa: S311 - made to be the same each time
    letters, frequencies = "etaoinshrdlcumwfgypbvk", range(22, 0, -1)
    words = ["".join(rng.choices(letters, frequencies, k=rng.randint(2, 10))) for _ in range(4000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    text = " ".join(rng.choices(words, weights, k=90_000)).encode("ascii")
    return text[: MIB // 2]
