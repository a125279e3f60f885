# SPDX-License-Identifier: MIT
"""The emulated guest's vCPUs and the content of its RAM."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from pysampler._native import ffi, lib
from pysampler.core.seam import u64

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pysampler.core.dirty_log import DirtyLogFile

# Bytes of a page of the emulated guest.
GUEST_PAGE_SIZE: int = lib.PS_GUEST_PAGE_SIZE

# How long a throttled vCPU runs between two sleeps.
THROTTLE_RUN_NS: int = lib.PS_THROTTLE_RUN_NS
THROTTLE_ASLEEP_NS = (1 << 64) - 1  # the sleep of one that does not run at all


class Pattern(enum.IntEnum):
    """The patterns in which an emulated vCPU picks its next page."""

    IDLE = lib.PS_PATTERN_IDLE
    UNIFORM = lib.PS_PATTERN_UNIFORM
    HOTCOLD = lib.PS_PATTERN_HOTCOLD
    ZIPF = lib.PS_PATTERN_ZIPF
    SWEEP = lib.PS_PATTERN_SWEEP
    KV = lib.PS_PATTERN_KV


class Effect(enum.IntEnum):
    """The effect of an emulated vCPU's write."""

    MARK = lib.PS_EFFECT_MARK
    SILENT = lib.PS_EFFECT_SILENT
    FREE = lib.PS_EFFECT_FREE
    READ = lib.PS_EFFECT_READ  # none: it loads


class KvWrite(enum.IntEnum):
    """The writing operations of an emulated key-value store."""

    UPDATE = lib.PS_KV_UPDATE
    INSERT = lib.PS_KV_INSERT
    MODIFY = lib.PS_KV_MODIFY


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


class KvState(NamedTuple):
    """How far the writes to a store are; see struct ps_kv."""

    newest: int
    rest_at: int
    rest_end: int
    unlink: int
    modify: int
    item_at: NDArray[np.uint64]
    free_at: NDArray[np.uint64]


class VcpuState(NamedTuple):
    """How far a vCPU is in its sequence of writes; see struct ps_vcpu."""

    draws: int
    position: int
    kv: KvState | None


class Vcpu:
    """The state of one emulated vCPU; its memory must outlive its runs. See struct ps_vcpu."""

    def __init__(
        self, index: int, counter: NDArray[np.uint64], log: DirtyLogFile | None = None
    ) -> None:
        """Make an idle vCPU that counts its writes in ``counter[0]`` and notes them in ``log``."""
        self._counter = counter
        self._store: KvStore | None = None
        self._struct = ffi.new("struct ps_vcpu *")
        self._struct.index = index
        self._struct.writes = u64(counter, "counter")
        self._log = log  # C points into it
        if log is not None:
            self._struct.log, self._struct.ring, self._struct.ring_entries = log.attach(index)
            self._struct.ring_size = log.ring_size

    def set_work(
        self,
        *,
        address: int,
        stamps: NDArray[np.uint64] | None,
        n_pages: int,
        log_block: int = 0,
        seed: int,
        pattern: Pattern,
        effect: Effect,
        writes_per_second: int,
        lag_ns: int = 0,
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
            kv.item_at = u64(store.item_at, "item_at")
            kv.item_bytes = ffi.from_buffer("uint32_t[]", store.item_bytes)
            kv.item_class = ffi.from_buffer("uint8_t[]", store.item_class)
            kv.free_at = u64(store.free_at, "free_at")
            kv.reads, kv.write, kv.newest = store.reads, store.write, store.n_keys - 1
        self._store = store  # C points into its arrays
        self._stamps = stamps
        struct.base = ffi.cast("void *", address)
        struct.stamps = ffi.NULL if stamps is None else u64(stamps, "stamps")
        if self._log is not None:
            struct.log_words = u64(self._log.bits(log_block), "bits", writable=True)
            struct.log_first = self._log.blocks[log_block].first_word * 64
        struct.n_pages, struct.seed = n_pages, seed
        struct.pattern, struct.effect = pattern, effect
        struct.hot_pages, struct.hits = hot_pages, hits
        struct.theta, struct.stride = theta, stride
        struct.on_ns, struct.off_ns = on_ns, off_ns
        struct.pace = (writes_per_second, lag_ns, 0, 0, 0)
        struct.draws = struct.position = 0

    def state(self) -> VcpuState:
        """Return how far it is in its sequence; only while `run` is not under way."""
        kv, state = self._struct.kv, None
        if self._store is not None:
            indexes = self._store.item_at.copy(), self._store.free_at.copy()
            state = KvState(kv.newest, kv.rest_at, kv.rest_end, kv.unlink, kv.modify, *indexes)
        return VcpuState(self._struct.draws, self._struct.position, state)

    def set_state(self, state: VcpuState) -> None:
        """Go on from a state of the same work; only while `run` is not under way.

        C trusts it: all items and what is left of a write must lie within the working set.
        """
        self._struct.draws, self._struct.position = state.draws, state.position
        if state.kv is not None and self._store is not None:
            kv = self._struct.kv
            kv.newest, kv.modify, kv.unlink = state.kv.newest, state.kv.modify, state.kv.unlink
            kv.rest_at, kv.rest_end = state.kv.rest_at, state.kv.rest_end
            self._store.item_at[:] = state.kv.item_at
            self._store.free_at[:] = state.kv.free_at

    def run(self, origin_ns: int, until_ns: int) -> None:
        """Write until CLOCK_MONOTONIC is ``until_ns``, or `interrupt`; see ps_vcpu_run."""
        lib.ps_vcpu_run(self._struct, origin_ns, until_ns)

    def throttle(self, sleep_ns: int) -> None:
        """Sleep for ``sleep_ns`` after each `THROTTLE_RUN_NS`; 0 ends that. At once, if it runs."""
        lib.ps_vcpu_throttle(self._struct, sleep_ns)

    @property
    def slept_ns(self) -> int:
        """How long it has slept by order of the throttle, in all."""
        throttle = ffi.addressof(self._struct, "throttle")
        return int(lib.ps_throttle_slept(throttle, time.monotonic_ns()))

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
    if len(text) < 8192 or (first_page + n_pages) * GUEST_PAGE_SIZE > len(buffer):
        raise ValueError("too short a text, or pages past the end of the memory")
    start = buffer + first_page * GUEST_PAGE_SIZE
    lib.ps_fill(start, first_page, n_pages, seed, text_pages, text, len(text))
