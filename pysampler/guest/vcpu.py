# SPDX-License-Identifier: MIT
"""One vCPU: an OS thread that stays in C while the guest runs."""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any

from pysampler import core
from pysampler.core import Pattern, VcpuState
from pysampler.errors import UsageError
from pysampler.guest.kv import lay_out
from pysampler.guest.ram import PAGE_SIZE, named
from pysampler.guest.workload import sequence_seed
from pysampler.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from pysampler.core import DirtyLogFile, KvStore
    from pysampler.guest.phases import Phase
    from pysampler.guest.ram import Block, BlockSpec, Ram
    from pysampler.guest.workload import Workload

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


class VcpuThread(threading.Thread):
    """A vCPU. `Guest` tells it when to run.

    Attributes:
        index: its number, from 0.
        counter: its slot in the shared page; ``counter[0]`` is its writes so far.
        seed: the guest's; set while the vCPU stands.
        phase: number of the phase in whose sequence of writes it is; -1 before the first.
        parked: whether it stands, and so its counter and stamps; `Guest`'s condition guards it.
        failure: what ended it too early, if anything did.
    """

    def __init__(
        self,
        index: int,
        ram: Ram,
        seed: int,
        counter: NDArray[np.uint64],
        next_stretch: Callable[[VcpuThread], tuple[Phase, int] | None],
        failed: Callable[[VcpuThread], None],
        log: DirtyLogFile,
    ) -> None:
        """Prepare a vCPU.

        Args:
            index: its number.
            ram: what it writes.
            seed: the guest's.
            counter: its slot in the shared page.
            next_stretch: waits until there is something to run and returns the phase and the
                CLOCK_MONOTONIC time of the guest clock's 0; None when the guest ends.
            failed: is called last of all when `failure` has come.
            log: where it notes what it writes.
        """
        super().__init__(name=f"vCPU {index}", daemon=True)
        self.index = index
        self.counter = counter
        self.phase = -1
        self.parked = True
        self.failure: Exception | None = None
        self._ram = ram
        self.seed = seed
        self._next_stretch = next_stretch
        self._failed = failed
        self._core = core.Vcpu(index, counter, log)

    def run(self) -> None:
        """Run until the guest ends."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - a guest without one of its vCPUs must be told
            self.failure = error
            self._failed(self)

    def _run(self) -> None:
        """Run stretch by stretch: one C call, which a phase's end or `interrupt` ends."""
        # QEMU's threads are called "CPU 0/KVM"; that is how people and tools find them.
        with open("/proc/thread-self/comm", "w", encoding="ascii") as comm:
            comm.write(f"CPU {self.index}/EMU")
        while True:
            stretch = self._next_stretch(self)
            if stretch is None:
                return
            phase, origin_ns = stretch
            if phase.number != self.phase:
                workload = phase.workloads[self.index]
                self._core.set_work(**self.work(phase.number, workload, self.seed))
                self.phase = phase.number
            # A guest's clock may be ahead of the machine's: C takes differences, which hold then.
            bursts_ns = (origin_ns + phase.start_ns) % (1 << 64)
            self._core.run(bursts_ns, origin_ns + phase.end_ns)

    def work(self, number: int, workload: Workload, seed: int) -> dict[str, Any]:
        """Return what `core.Vcpu.set_work` takes for its workload of a phase, by a guest's seed."""
        block = named(self._ram.blocks, workload.block)
        sequence = sequence_seed(seed, self.index, number)
        return {
            **work(workload, block, seed, sequence),
            "log_block": self._ram.blocks.index(block),
        }

    def state(self) -> VcpuState:
        """Return how far it is in the sequence of `phase`; it must stand."""
        return VcpuState(0, 0, None) if self.phase < 0 else self._core.state()

    def set_state(self, phase: int, work: dict[str, Any] | None, state: VcpuState) -> None:
        """Be so far in the sequence of a phase; it must stand.

        Args:
            phase: its number, -1 for a vCPU that has not begun.
            work: the phase's, which is the vCPU's from here on; None for one that has not begun.
            state: one that fits the work; C trusts it.
        """
        self.phase = phase
        if work is not None:
            self._core.set_work(**work)
            self._core.set_state(state)

    def throttle(self, percentage: float) -> None:
        """Let it run for 100 - ``percentage`` of the time; from any thread."""
        sleep_ns = core.THROTTLE_ASLEEP_NS
        if percentage < 100:
            sleep_ns = min(round(core.THROTTLE_RUN_NS * percentage / (100 - percentage)), sleep_ns)
        self._core.throttle(sleep_ns)

    @property
    def throttled_ns(self) -> int:
        """How long it has slept by order of `throttle`, in all."""
        return self._core.slept_ns

    def interrupt(self) -> None:
        """Make it leave C soon; from any thread."""
        self._core.interrupt()

    def resume(self) -> None:
        """Let it enter C again."""
        self._core.resume()


def working_set(workload: Workload, block: Block | BlockSpec) -> int:
    """Return the bytes of a workload's working set.

    Raises:
        UsageError: it is larger than the block.
    """
    if workload.ws is None:
        return block.length
    if workload.ws > block.length:
        raise UsageError(
            f"workload {workload.text!r}: ws is larger than {block.idstr}, which has "
            f"{format_size(block.length)}"
        )
    return workload.ws


def store_of(workload: Workload, block: Block | BlockSpec, seed: int) -> KvStore | None:
    """Return the store of a workload kv as it is laid out on a block; None for the others.

    Raises:
        UsageError: it does not fit.
    """
    if workload.pattern is not Pattern.KV:
        return None
    return lay_out(workload.kv, working_set(workload, block), seed)


def work(workload: Workload, block: Block, seed: int, sequence: int) -> dict[str, Any]:
    """Return what `core.Vcpu.set_work` takes for a workload on a block.

    Args:
        workload: the workload.
        block: the block.
        seed: the guest's; a store is laid out from it.
        sequence: seed of the sequence of pages.

    Raises:
        UsageError: they do not fit together.
    """
    n_pages = working_set(workload, block) // PAGE_SIZE
    store = store_of(workload, block, seed)
    if store is not None:  # each vCPU moves items in an index of its own
        store = store._replace(item_at=store.item_at.copy(), free_at=store.free_at.copy())
    return {
        "address": block.address,
        "stamps": block.stamps,
        "n_pages": n_pages,
        "seed": sequence,
        "pattern": workload.pattern,
        "effect": workload.effect,
        "writes_per_second": workload.wps,
        "lag_ns": workload.lag_ms * 1_000_000,
        "on_ns": workload.on_ms * 1_000_000,
        "off_ns": workload.off_ms * 1_000_000,
        "hot_pages": max(1, round(n_pages * workload.hot)),
        "hits": min(round(workload.hits * (1 << 64)), (1 << 64) - 1),
        "theta": workload.theta,
        "stride": scatter_stride(n_pages if store is None else store.n_keys),
        "store": store,
    }


def scatter_stride(n: int) -> int:
    """Return a stride that visits all of ``n`` pages, neighbours in rank far apart."""
    stride = max(1, round(n * _GOLDEN_RATIO))
    while math.gcd(stride, n) > 1:
        stride += 1
    return stride
