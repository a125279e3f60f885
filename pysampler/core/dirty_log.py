# SPDX-License-Identifier: MIT
"""The dirty log of an emulated guest in shared memory; see struct ps_dirty_log."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pysampler._native import ffi, lib
from pysampler.core.seam import check, u64

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

LOG_RING: int = lib.PS_LOG_RING
LOG_RING_MIN: int = lib.PS_LOG_RING_MIN
LOG_RING_MAX: int = lib.PS_LOG_RING_MAX
LOG_SPARE: int = lib.PS_LOG_SPARE
LOG_HOLD_S: float = lib.PS_LOG_HOLD_MS / 1000

_HEADER_BYTES = 4096
_BLOCK_BYTES: int = ffi.sizeof("struct ps_log_block")
_RING_BYTES: int = ffi.sizeof("struct ps_log_ring")


class LogMode(enum.IntEnum):
    """What the vCPUs note."""

    OFF = lib.PS_LOG_OFF
    BITMAP = lib.PS_LOG_BITMAP
    BITMAP_AND_RING = lib.PS_LOG_BITMAP_AND_RING
    GIVEN_UP = lib.PS_LOG_GIVEN_UP  # set by a vCPU that stood at a full ring for too long


class LogBlock(NamedTuple):
    """A RAMBlock in a log.

    Attributes:
        file: (device, inode) of its memfd.
        n_pages: pages of 4096 bytes.
        first_word: where its bits begin, in words of 64 pages.
    """

    file: tuple[int, int]
    n_pages: int
    first_word: int

    @property
    def n_words(self) -> int:
        """Words of its bits."""
        return -(-self.n_pages // 64)


def log_blocks(files: Sequence[tuple[int, int]], n_pages: Sequence[int]) -> tuple[LogBlock, ...]:
    """Return where a log has the bits of blocks of these files and sizes."""
    blocks: list[LogBlock] = []
    for file, n in zip(files, n_pages, strict=True):
        first = blocks[-1].first_word + blocks[-1].n_words if blocks else 0
        blocks.append(LogBlock(file, n, first))
    return tuple(blocks)


def is_ring_size(entries: int) -> bool:
    """Return whether rings can have that size: 0, or a power of two from 1024 to 65536."""
    is_power = entries & (entries - 1) == 0
    return entries == 0 or (LOG_RING_MIN <= entries <= LOG_RING_MAX and is_power)


def log_bytes(n_vcpus: int, blocks: Sequence[LogBlock], ring_size: int = LOG_RING) -> int:
    """Return the size of a log's file."""
    n_words = sum(block.n_words for block in blocks)
    return _entries_at(n_vcpus, len(blocks)) + (n_vcpus * 2 * ring_size + n_words) * 8


def _entries_at(n_vcpus: int, n_blocks: int) -> int:
    return _HEADER_BYTES + n_blocks * _BLOCK_BYTES + n_vcpus * _RING_BYTES


class DirtyLogFile:
    """A dirty log that is mapped here. The mapping must outlive it.

    Attributes:
        n_vcpus: how many there are, each with a ring.
        blocks: RAMBlocks.
        ring_size: entries after which a ring is full; 0 for no rings.
    """

    def __init__(
        self,
        words: NDArray[np.uint64],
        n_vcpus: int,
        blocks: Sequence[LogBlock],
        ring_size: int = LOG_RING,
    ) -> None:
        """Look at ``words``, the whole file, as a log of so many vCPUs and of these blocks.

        Raises:
            ValueError: the file has another size, or rings cannot have that one.
        """
        if not is_ring_size(ring_size):
            raise ValueError(f"it says that it has rings of {ring_size} entries")
        if words.nbytes != log_bytes(n_vcpus, blocks, ring_size):
            raise ValueError("a log of another size")
        self.n_vcpus, self.blocks, self.ring_size = n_vcpus, tuple(blocks), ring_size
        start = u64(words, "log", writable=True)
        base = ffi.cast("char *", start)
        self._words = words  # C points into it
        self._log = ffi.cast("struct ps_dirty_log *", base)
        rings_at = _HEADER_BYTES + len(blocks) * _BLOCK_BYTES
        self._table = ffi.cast("struct ps_log_block *", base + _HEADER_BYTES)
        self._rings = ffi.cast("struct ps_log_ring *", base + rings_at)
        entries_at = _entries_at(n_vcpus, len(blocks)) // 8
        bits_at = entries_at + n_vcpus * 2 * ring_size
        self._entries = words[entries_at:bits_at].reshape(n_vcpus, 2 * ring_size)
        self._bits = words[bits_at:]
        self._kicks = ffi.new("uint32_t *")

    @classmethod
    def read(cls, words: NDArray[np.uint64], most_vcpus: int, most_blocks: int) -> DirtyLogFile:
        """Look at a log that another process has made and may change meanwhile.

        Raises:
            ValueError: it is no log, or one of another version or size.
        """
        if words.nbytes < _HEADER_BYTES:
            raise ValueError("it is too short")
        base = ffi.cast("char *", u64(words, "log", writable=True))
        header = ffi.cast("struct ps_dirty_log *", base)
        if (header.magic, header.version) != (lib.ps_log_magic(), lib.PS_LOG_VERSION):
            raise ValueError("it is no log, or of another version")
        n_vcpus, n_blocks = int(header.n_vcpus), int(header.n_blocks)
        if not (1 <= n_vcpus <= most_vcpus and 1 <= n_blocks <= most_blocks):
            raise ValueError(f"it says that it has {n_vcpus} vCPUs and {n_blocks} blocks")
        if words.nbytes < _entries_at(n_vcpus, n_blocks):
            raise ValueError("it is too short")
        table = ffi.cast("struct ps_log_block *", base + _HEADER_BYTES)
        rows = [(int(row.device), int(row.inode), int(row.n_pages)) for row in table[0:n_blocks]]
        blocks = log_blocks([row[:2] for row in rows], [row[2] for row in rows])
        return cls(words, n_vcpus, blocks, int(header.ring_size))

    def publish(self, cost_ns: int) -> None:
        """Write what describes the log; by the guest that has made it.

        Args:
            cost_ns: what each first write is to take longer.
        """
        for row, block in zip(self._table[0 : len(self.blocks)], self.blocks, strict=True):
            row.device, row.inode = block.file
            row.n_pages, row.first_word = block.n_pages, block.first_word
        log = self._log
        log.version, log.n_vcpus, log.n_blocks = lib.PS_LOG_VERSION, self.n_vcpus, len(self.blocks)
        log.cost_ns, log.ring_size = cost_ns, self.ring_size
        log.fence = lib.ps_log_register() < 0
        log.magic = lib.ps_log_magic()

    @property
    def mode(self) -> LogMode:
        """What the vCPUs note just now; another process may have written what is none."""
        mode = lib.ps_log_mode(self._log)
        return LogMode(mode) if mode in iter(LogMode) else LogMode.GIVEN_UP

    def set_mode(self, mode: LogMode) -> None:
        """Turn logging on or off; what is not logged yet can be read when this returns.

        Raises:
            OSError: there are no barriers here (membarrier).
        """
        check(lib.ps_log_set_mode(self._log, mode), "membarrier")

    def bits(self, index: int) -> NDArray[np.uint64]:
        """Return the words of a block's bits as they are, for `core.Vcpu` and for tests."""
        block = self.blocks[index]
        return self._bits[block.first_word : block.first_word + block.n_words]

    def take(self, index: int) -> NDArray[np.uint64]:
        """Get and reset a block's bits.

        Returns:
            The words; page ``n`` is bit ``n % 64`` of word ``n // 64``. A page that is read after
            this has all that was written to it before its bit was taken.

        Raises:
            OSError: there are no barriers here (membarrier).
        """
        bits = self.bits(index)
        taken = np.empty(len(bits), dtype=np.uint64)
        n, words = len(bits), u64(bits, "bits", writable=True)
        check(lib.ps_log_take(words, n, u64(taken, "taken", writable=True)), "membarrier")
        return taken

    def take_all(self) -> NDArray[np.uint64]:
        """Get and reset the bits of all blocks, as `take` does, at one go.

        Returns:
            The words of all blocks; `LogBlock` says where each block's are.

        Raises:
            OSError: there are no barriers here (membarrier).
        """
        taken = np.empty(len(self._bits), dtype=np.uint64)
        words = u64(self._bits, "bits", writable=True)
        check(lib.ps_log_take(words, len(taken), u64(taken, "taken", writable=True)), "membarrier")
        return taken

    def reset(self) -> None:
        """Clear the bits of all blocks.

        Raises:
            OSError: there are no barriers here (membarrier).
        """
        words = u64(self._bits, "bits", writable=True)
        check(lib.ps_log_take(words, len(self._bits), ffi.NULL), "membarrier")

    def count(self, index: int, first: int, n: int) -> int:
        """Return how many of a block's ``n`` pages from ``first`` on have their bit set."""
        bits = self.bits(index)[first // 64 : -(-(first + n) // 64)].copy()
        bits[:1] &= np.uint64((1 << 64) - (1 << first % 64))
        if end := (first + n) % 64:
            bits[-1:] &= np.uint64((1 << end) - 1)
        return int(lib.ps_log_count(u64(bits, "bits"), len(bits)))

    def harvest(self, vcpu: int, seen: NDArray[np.uint64]) -> int:
        """Empty a vCPU's ring and let it go on.

        Args:
            vcpu: its number.
            seen: bits of all blocks; those of the ring's pages are set.

        Returns:
            How many of the pages had not been seen.

        Raises:
            OSError: the ring says what cannot be.
        """
        entries = u64(self._entries[vcpu], "entries")
        seen_words = u64(seen, "seen", writable=True)
        n = lib.ps_log_harvest(
            self._rings + vcpu, entries, self.ring_size, seen_words, len(seen) * 64
        )
        return check(n, f"ring of vCPU {vcpu}")

    def collect(self, vcpu: int, kept: NDArray[np.uint64] | None) -> int:
        """Empty a vCPU's ring, clear its pages' bits in the log, and let the vCPU go on.

        Args:
            vcpu: its number.
            kept: bits of all blocks, where those of the pages are set; None if nobody wants them.
                The pages may be read after a `take`.

        Returns:
            How many entries the ring had.

        Raises:
            OSError: the ring says what cannot be.
        """
        entries, bits = u64(self._entries[vcpu], "entries"), u64(self._bits, "bits", writable=True)
        kept_words = ffi.NULL if kept is None else u64(kept, "kept", writable=True)
        n = lib.ps_log_collect(
            self._rings + vcpu, entries, self.ring_size, bits, kept_words, len(self._bits) * 64
        )
        return check(n, f"ring of vCPU {vcpu}")

    @property
    def own_reader(self) -> bool:
        """Whether the guest's own process reads the log; that process sets it."""
        return bool(self._log.own_reader)

    @own_reader.setter
    def own_reader(self, reads: bool) -> None:
        self._log.own_reader = reads

    @property
    def n_words(self) -> int:
        """Words of the bits of all blocks."""
        return len(self._bits)

    def wait(self) -> None:
        """Wait until a ring is half full, or for 100 ms."""
        lib.ps_log_wait(self._log, self._kicks)

    def n_full(self, vcpu: int) -> int:
        """Return how often a vCPU's ring was full."""
        return int(self._rings[vcpu].n_full)

    def stood_ns(self, vcpu: int) -> int:
        """Return how long a vCPU stood at full rings, in ns."""
        return int(self._rings[vcpu].stood_ns)

    def asleep_until_ns(self, vcpu: int) -> int:
        """Return when a vCPU's last sleep at a full ring ends, CLOCK_MONOTONIC in ns."""
        return int(self._rings[vcpu].asleep_until_ns)

    def sleep_at_full(self, vcpu: int, sleep_ns: int) -> None:
        """Let a vCPU sleep at each full ring, after its harvest, as dirty-limit does.

        Args:
            vcpu: its number.
            sleep_ns: how long, at most a minute; 0 for not at all, which ends a sleep as well.
        """
        lib.ps_log_sleep_at_full(self._rings + vcpu, sleep_ns)

    def attach(self, vcpu: int) -> tuple[Any, Any, Any]:
        """Return what `core.Vcpu` needs in C: the log, the vCPU's ring, the ring's entries."""
        entries = u64(self._entries[vcpu], "entries", writable=True)
        return self._log, self._rings + vcpu, entries
