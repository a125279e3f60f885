# SPDX-License-Identifier: MIT
"""Guest: RAM and vCPUs together, stopped and continued as a VM is."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pysampler.core import LOG_RING
from pysampler.errors import MissingFeatureError, PysamplerError, StateError, UsageError
from pysampler.guest.dirty_log import DirtyLog, check_ring_size
from pysampler.guest.ram import SharedArray, named
from pysampler.guest.run_state import RunState, check_cont, check_transition
from pysampler.guest.shared_log import SharedLog
from pysampler.guest.vcpu import VcpuThread, work

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pysampler.guest.phases import Phase, Phases
    from pysampler.guest.ram import Block, Ram

MAX_VCPUS = 255
SLOT_BYTES = 64  # a cache line: vCPUs do not disturb each other

# How long `stop` waits for a vCPU that is held in a write. It is longer than a guest takes to let
# itself go after its tracker has died; see `guest.held`.
STOP_LIMIT_S = 10.0
# How long `close` waits for a vCPU that a tracker holds in a write.
CLOSE_LIMIT_S = 1.0

MAX_THROTTLE = 100  # percent: it sleeps until it is told otherwise then

_RATE_WINDOW_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class VcpuInfo:
    """A vCPU at one moment.

    Attributes:
        index: its number, from 0.
        thread_id: of the OS.
        workload: of the phase that is under way.
        writes: since the guest started.
        writes_per_second: over about the last second.
    """

    index: int
    thread_id: int
    workload: str
    writes: int
    writes_per_second: float


class Guest:
    """A guest without a VM. It is made stopped; `cont` starts it. Any thread may call.

    Attributes:
        ram: its memory.
        phases: what its vCPUs do when.
        seed: what their sequences of pages are computed from.
        log: what the vCPUs have written, for `pysampler.tracking.guest_log` to read.
        shared_log: the same log, as this process itself reads it.
        counters: shared memory, 64 bytes per vCPU, of which the first 8 are its writes so far.
        shutdown_requested: set when it is to end; whoever owns it waits for that and closes it.
    """

    def __init__(
        self,
        ram: Ram,
        phases: Phases,
        seed: int = 0,
        *,
        incoming: bool = False,
        logging_cost_ns: int = 0,
        dirty_ring_size: int = LOG_RING,
    ) -> None:
        """Prepare vCPUs, one per workload of ``phases``; the guest owns ``ram`` from here on.

        Args:
            ram: its memory.
            phases: what its vCPUs do.
            seed: what that is computed from.
            incoming: it waits for an incoming migration; else it is ready to run.
            logging_cost_ns: what a page's first write takes longer while dirty logging is on.
            dirty_ring_size: entries after which a vCPU's dirty ring is full, a power of two from
                1024 to 65536; 0 for no rings.

        Raises:
            UsageError: a workload that does not fit its block, or rings cannot have that size.
        """
        n_vcpus = len(phases.entries[0][1])
        if not 1 <= n_vcpus <= MAX_VCPUS:
            raise UsageError(f"{n_vcpus} vCPUs; there can be 1 to {MAX_VCPUS}")
        for workload in phases.workloads():
            work(workload, named(ram.blocks, workload.block), seed, 0)
        check_ring_size(dirty_ring_size, "dirty_ring_size")
        self.ram = ram
        self.shutdown_requested = threading.Event()
        self.phases = phases
        self.seed = seed
        self._changed = threading.Condition()  # guards all that follows
        self._state = RunState.INMIGRATE if incoming else RunState.PRELAUNCH
        self._autostart = False
        self._closing = False
        self._stopping = False  # since it ran nobody has found that all vCPUs stand
        self._n_stands = 0  # how often all vCPUs have come to stand
        self._guest_ns = 0  # the guest's clock where it stands
        self._origin_ns = 0  # CLOCK_MONOTONIC of its 0 while it runs
        self._history: deque[tuple[int, tuple[int, ...]]] = deque(maxlen=64)
        self.counters = SharedArray("pysampler-vcpus", n_vcpus * SLOT_BYTES // 8)
        self.log = DirtyLog(ram.blocks, n_vcpus, logging_cost_ns, dirty_ring_size)
        self.shared_log = SharedLog(self.log)
        slots = self.counters.array.reshape(n_vcpus, SLOT_BYTES // 8)
        self._threads = tuple(
            VcpuThread(i, ram, seed, slots[i], self._next_stretch, self._vcpu_failed, self.log.file)
            for i in range(n_vcpus)
        )
        for thread in self._threads:
            thread.start()
        self.note_rates()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """RAMBlocks, the main one first."""
        return self.ram.blocks

    @property
    def state(self) -> RunState:
        """What it does."""
        return self._state

    @property
    def running(self) -> bool:
        """Whether it runs, between `cont` and `stop`."""
        return self._state is RunState.RUNNING

    @property
    def dirty_ring_size(self) -> int:
        """Entries after which a vCPU's dirty ring is full; 0 for no rings."""
        return self.log.file.ring_size

    @property
    def autostart(self) -> bool:
        """Whether it is to run when its incoming migration is done."""
        return self._autostart

    def stop(self) -> bool:
        """Stop all vCPUs. When this returns none writes, and counters and truth are exact.

        A guest that does not run keeps its state. One that waits for an incoming migration will not
        run by itself when it is done.

        Returns:
            Whether it has stopped now.

        Raises:
            StateError: a vCPU is held in a write for `STOP_LIMIT_S`. It stops when it is let go.
        """
        with self._changed:
            if self._state is RunState.INMIGRATE:
                self._autostart = False
                return False
            if self._state is RunState.RUNNING:
                self._enter(RunState.PAUSED)
            self._await_stand()
            stopped, self._stopping = self._stopping, False
            return stopped

    def cont(self) -> bool:
        """Let the vCPUs run; those of an incoming migration, when it is done.

        Returns:
            Whether it has begun to run now.

        Raises:
            StateError: it cannot run in its state, or a vCPU has been held in a write since a
                `stop`, for `STOP_LIMIT_S` from now on.
        """
        with self._changed:
            if self._state is RunState.INMIGRATE:
                self._autostart = True
                return False
            if self._state is not RunState.RUNNING:
                self._await_stand()
            if self._state is RunState.RUNNING:
                return False
            check_cont(self._state)
            self._enter(RunState.RUNNING)
            return True

    def transition(self, to: RunState) -> RunState:
        """Bring the guest into another state, as a migration does; vCPUs stop or run with it.

        Returns:
            The state before.

        Raises:
            StateError: there is no way from its state to that, or a vCPU is held in a write for
                `STOP_LIMIT_S`. One that ran is in the new state then all the same.
        """
        with self._changed:
            before = self._state
            if self._state is not RunState.RUNNING:
                self._await_stand()
            self._enter(to)
            if to is not RunState.RUNNING:
                self._await_stand()
            self._stopping = False
            return before

    def vcpus(self) -> tuple[VcpuInfo, ...]:
        """Return what the vCPUs do and have done."""
        self.note_rates()
        now, writes = time.monotonic_ns(), self.writes()
        before, writes_before = next(
            (
                entry
                for entry in reversed(tuple(self._history))
                if now - entry[0] >= _RATE_WINDOW_NS
            ),
            self._history[0],
        )
        seconds = max(now - before, 1) / 1e9
        workloads = self.phases.at(self.clock_ns()).workloads
        return tuple(
            VcpuInfo(
                index=thread.index,
                thread_id=thread.native_id or 0,
                workload=workload.text,
                writes=count,
                writes_per_second=(count - count_before) / seconds,
            )
            for thread, workload, count, count_before in zip(
                self._threads, workloads, writes, writes_before, strict=True
            )
        )

    def throttle(self, percentage: float, vcpu: int | None = None) -> None:
        """Slow vCPUs down, as QEMU's auto-converge does: they run for 10 ms, then sleep.

        It takes effect at once, and stays over `stop` and `cont`. How many writes that costs is up
        to the workload; see `Workload.lag_ms`.

        Args:
            percentage: of the time that they sleep, from 0, which ends it, to 100: they sleep at
                once, until they are told otherwise.
            vcpu: this one alone; None for all.

        Raises:
            UsageError: a number out of range.
        """
        if not 0 <= percentage <= MAX_THROTTLE:
            raise UsageError(f"throttle: {percentage} is not from 0 to {MAX_THROTTLE} %")
        if vcpu is not None and not 0 <= vcpu < len(self._threads):
            raise UsageError(
                f"throttle: there is no vCPU {vcpu}; the last is {len(self._threads) - 1}"
            )
        for thread in self._threads:
            if vcpu in (None, thread.index):
                thread.throttle(percentage)

    def throttled_ns(self) -> tuple[int, ...]:
        """Return how long each vCPU has slept by order of `throttle` until now, in all."""
        return tuple(thread.throttled_ns for thread in self._threads)

    def note_rates(self) -> None:
        """Remember the counters of now, so that later writes a second are of the last second.

        The owner calls this about four times a second; `vcpus` does itself, too.
        """
        now = time.monotonic_ns()
        if not self._history or now - self._history[-1][0] >= _RATE_WINDOW_NS // 10:
            self._history.append((now, self.writes()))

    def writes(self) -> tuple[int, ...]:
        """Return each vCPU's writes so far."""
        return tuple(int(thread.counter[0]) for thread in self._threads)

    def progress(self) -> tuple[tuple[int, int], ...]:
        """Return each vCPU's thread id and writes so far."""
        return tuple(
            (thread.native_id or 0, writes)
            for thread, writes in zip(self._threads, self.writes(), strict=True)
        )

    def clock_ns(self) -> int:
        """Return the guest's clock: ns that it has run."""
        with self._changed:
            return time.monotonic_ns() - self._origin_ns if self.running else self._guest_ns

    @contextmanager
    def standing(self) -> Iterator[tuple[VcpuThread, ...]]:
        """Keep a stopped guest so; yield its vCPUs, whose state may be read and set meanwhile.

        Raises:
            StateError: it is not stopped.
        """
        with self._changed:
            if self.running or not all(thread.parked for thread in self._threads):
                raise StateError(
                    "a guest's state is saved and loaded while it is stopped; stop it first"
                )
            yield self._threads

    def set_course(self, phases: Phases, seed: int, guest_ns: int) -> None:
        """Set what a stopped guest does from when on; its vCPUs have been set to that time.

        Args:
            phases: of as many vCPUs as there are, whose workloads fit their blocks.
            seed: what they are computed from.
            guest_ns: what the guest's clock shows.
        """
        with self.standing() as vcpus:
            self.phases, self.seed = phases, seed
            for vcpu in vcpus:
                vcpu.seed = seed
            self._guest_ns = guest_ns
            # The writes of before are not those of the last second.
            self._history = deque([(time.monotonic_ns(), self.writes())], self._history.maxlen)

    def count_dirty_since(self, monotonic_ns: int) -> dict[str, int]:
        """Return per block, by idstr, how many pages have been written since a time.

        Exact while the guest is stopped if it also was at that time; else it is off by at most
        one write per vCPU at either end.

        Args:
            monotonic_ns: CLOCK_MONOTONIC.

        Raises:
            MissingFeatureError: truth is not kept.
        """
        since = max(monotonic_ns, 1)  # 0 is a page that was never written
        counts = {}
        for block in self.blocks:
            if block.stamps is None:
                raise MissingFeatureError(
                    "the times of writes are not kept; start the guest with --truth"
                )
            counts[block.idstr] = int(np.count_nonzero(block.stamps >= since))
        return counts

    def request_shutdown(self) -> None:
        """Ask the owner to end the guest."""
        self.shutdown_requested.set()

    def check(self) -> None:
        """Make sure that all vCPUs are there.

        Raises:
            PysamplerError: one of them has failed; then the shutdown is requested, too.
        """
        for thread in self._threads:
            if thread.failure is not None:
                error = thread.failure
                raise PysamplerError(
                    f"vCPU {thread.index} ended: {type(error).__name__}: {error}"
                ) from error

    def close(self) -> None:
        """End the vCPUs and give the memory back; a `stop` that still waits ends, too.

        Memory is kept until the process ends if a vCPU is held in a write for `CLOSE_LIMIT_S`.
        """
        with self._changed:
            if self._closing:
                return
            self._closing = True
            if self._state is not RunState.SHUTDOWN:
                self._enter(RunState.SHUTDOWN)
            self._changed.notify_all()
        deadline = time.monotonic() + CLOSE_LIMIT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            return  # someone holds it in a fault; its memory ends with the process
        self.log.close()
        self.counters.close()
        self.ram.close()

    def _enter(self, to: RunState) -> None:
        """Change the state, the lock being held; vCPUs that must stop have yet to be waited for."""
        check_transition(self._state, to)
        if self._state is RunState.RUNNING:
            self._guest_ns = time.monotonic_ns() - self._origin_ns
            self._stopping = True
            for thread in self._threads:
                thread.interrupt()
        if to is RunState.RUNNING:
            for thread in self._threads:
                thread.resume()
            self._origin_ns = time.monotonic_ns() - self._guest_ns
        self._state = to
        self._changed.notify_all()

    def _await_stand(self) -> None:
        """Wait until all vCPUs stand, or the guest ends; the lock is held but while it waits.

        Raises:
            StateError: a vCPU is held in a write.
        """
        if all(thread.parked for thread in self._threads):
            return
        before = self._n_stands  # counted, as another thread may let them run again at once
        if self._changed.wait_for(
            lambda: self._closing or self._n_stands > before, timeout=STOP_LIMIT_S
        ):
            return
        held = next(thread.index for thread in self._threads if not thread.parked)
        raise StateError(
            f"vCPU {held} has not stopped within {STOP_LIMIT_S:g} s: it is held in a write, and"
            " will stop when it is let go; end the process that tracks this guest's memory, then"
            " try again"
        )

    def _park(self, thread: VcpuThread) -> None:
        """Note that a vCPU stands; the lock is held."""
        if thread.parked:
            return
        thread.parked = True
        if not self.running and all(other.parked for other in self._threads):
            self._n_stands += 1
            self._changed.notify_all()

    def _vcpu_failed(self, thread: VcpuThread) -> None:
        with self._changed:
            self._park(thread)  # nobody need wait for it
        self.request_shutdown()

    def _next_stretch(self, thread: VcpuThread) -> tuple[Phase, int] | None:
        with self._changed:
            self._park(thread)
            self._changed.wait_for(lambda: self.running or self._closing)
            if self._closing:
                return None
            thread.parked = False
            return self.phases.at(time.monotonic_ns() - self._origin_ns), self._origin_ns
