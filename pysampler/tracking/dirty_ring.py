# SPDX-License-Identifier: MIT
"""dirty-ring: pages written since the baseline, and which vCPU wrote each of them first.

The first write of each page stops its thread. A handler notes the page in the ring of that vCPU
and lets the thread go on, as KVM's dirty ring does by an exit of the vCPU. A full ring stops its
vCPU until it is harvested. A page counts once in a measurement, for the vCPU that wrote it first.
QEMU counts it again, because it protects harvested pages again.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from pysampler import core
from pysampler.core import LOG_RING, MAX_WAITING, RingRequest, RingSet, UffdKind
from pysampler.errors import FaultError, SourceError, UsageError
from pysampler.host.rights import process_error
from pysampler.sampling.passes import PassCount
from pysampler.tracking.memory import PAGES_PER_BIT, TrackedMemory
from pysampler.tracking.pages import count_zero_pages
from pysampler.tracking.userfaultfd import WriteProtection
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pysampler.memory.ramblock import RAMBlock

CAPACITY_MAX = 65536  # entries, as in KVM (KVM_DIRTY_RING_MAX_ENTRIES of linux/kvm_host.h)

# QEMU names the threads of its vCPUs "CPU 0/KVM" or "CPU 0/TCG". It has less than 10,000; any
# process may name its threads so, and each number up to the largest takes memory of ours.
_VCPU_THREAD = re.compile(r"CPU (\d{1,4})/", re.ASCII)


def vcpu_threads(pid: int) -> dict[int, int]:
    """Return the thread ids of a process's vCPUs by vCPU number, found by their names.

    The ids are those of the process's own pid namespace, as in a userfaultfd's messages.

    Raises:
        SourceError: no such process, or it has no thread that is named as QEMU names vCPUs.
    """
    vcpus = {}
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
                folder = f"/proc/{pid}/task/{tid}"
                with open(f"{folder}/comm", encoding="ascii", errors="replace") as comm:
                    name = _VCPU_THREAD.match(comm.read())
                if name:
                    vcpus[int(name[1])] = own_thread_id(folder)
    except OSError as error:
        raise process_error(error, pid) from error
    if not vcpus:
        raise SourceError(
            f"process {pid} has no thread named as a vCPU ('CPU 0/...'), so dirty-ring has nobody"
            " to count for; use dirty-bitmap"
        )
    return dict(sorted(vcpus.items()))


def own_thread_id(folder: str) -> int:
    """Return a thread's id in the innermost of the pid namespaces that it is in.

    Args:
        folder: the thread's in /proc.

    Raises:
        OSError: it has ended.
    """
    with open(f"{folder}/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[-1]) for line in file if line.startswith("NSpid:"))


class DirtyRing:
    """Observer by userfaultfd messages; see pysampler.sampling.sampler.Observer.

    Writes of threads that are no vCPU count for the total only.

    Args:
        blocks: what to track.
        vcpus: thread ids by vCPU number, as the process itself sees them.
        pid: the process whose writes count; None for this one.
        threads: threads that look for zero pages.
        capacity: entries of each ring.
        harvest_full: whether a full ring is harvested at once, as QEMU does when a vCPU exits for
            it. If not, the vCPU stands still until the next `compare`; in this process
            it must then be a thread that has released the interpreter's lock.
        reason: why the memory is tracked so, where there would be a better way; ``details`` has it.

    Raises:
        UsageError: ``capacity`` is out of range.
        MissingFeatureError: the kernel or the process does not offer it.
        SourceError: the memory cannot be tracked.
    """

    mode = Mode.DIRTY_RING
    sample_pages = 0

    def __init__(
        self,
        blocks: Sequence[RAMBlock],
        vcpus: Mapping[int, int],
        *,
        pid: int | None = None,
        threads: int = 1,
        capacity: int = LOG_RING,
        harvest_full: bool = True,
        reason: str = "",
    ) -> None:
        if not 1 <= capacity <= CAPACITY_MAX:
            raise UsageError(f"a ring has 1 to {CAPACITY_MAX} entries (got {capacity})")
        self._vcpus = tuple(vcpus)
        self._threads = threads
        self._capacity = capacity
        self._reason = reason
        self._zero = PassCount(0, 0)
        self.memory = TrackedMemory(
            blocks,
            os.getpid() if pid is None else pid,
            extra=(len(vcpus) + 1) * capacity * 8 + MAX_WAITING * 16,
        )
        self.n_total_pages = self.n_sampled_pages = self.memory.n_total_pages
        protection = WriteProtection(
            self.memory, UffdKind.MESSAGES, os.getpid() if pid is None else pid
        )
        rings = RingSet(
            protection.fd,
            protection.own_fd,
            self.memory.ranges,
            self.memory.bitmap,
            tuple(vcpus.values()),
            capacity=capacity,
            harvest_full=harvest_full,
            cleanup=-1 if protection.cleanup is None else protection.cleanup.fd,
        )
        self._handler = _Handler(protection, rings)
        # Should nobody call close(): no writer may wait for a handler that ends with us.
        self.close = weakref.finalize(self, self._handler.close)

    def warm_up(self) -> None:
        """Count zero pages, start the handler and protect everything."""
        self._zero = count_zero_pages(self.memory.blocks, self._threads)
        with self._failing():
            self._handler.start()

    def baseline(self) -> PassCount:
        """Forget the pages that were written during `warm_up`."""
        with self._failing():
            self._handler.ask(RingRequest.RESET)
        return self._zero

    def compare(self) -> PassCount:
        """Harvest the rings; count the pages written since the baseline."""
        with self._failing():
            self._handler.ask(RingRequest.HARVEST)
        self.memory.check()
        return PassCount(sum(self._handler.rings.n_pages) * PAGES_PER_BIT, 0)

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return (vCPU number, pages it was the first to write) as of the last `compare`."""
        pages = self._handler.rings.n_pages
        return tuple((vcpu, n * PAGES_PER_BIT) for vcpu, n in zip(self._vcpus, pages, strict=False))

    @property
    def n_waiting(self) -> int:
        """Number of writes that wait at full rings now."""
        return self._handler.rings.n_waiting

    @property
    def userfaultfd(self) -> int:
        """The descriptor."""
        return self._handler.protection.fd

    def details(self) -> dict[str, Any]:
        """Return the members of ``x-pysampler``: how it was tracked, and the rings' counts."""
        rings = self._handler.rings
        return {
            "tracking": "userfaultfd-wp-messages",
            **({"tracking-reason": self._reason} if self._reason else {}),
            "dirty-ring-size": self._capacity,
            "dirty-ring-full": list(rings.n_full[:-1]),
            "n-dirty-pages-no-vcpu": rings.n_pages[-1] * PAGES_PER_BIT,
            "blocks": self.memory.block_details(),
        }

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._handler.protection.check_cleanup()
            why = f"its handler ended: {error.strerror}"
            if error.errno == errno.EOWNERDEAD:
                seconds = core.CLEANUP_LATE_S
                why = f"it and its cleanup process stood still for {seconds:g} s or longer"
            raise FaultError(
                f"dirty-ring: {why}",
                idstr=self.memory.blocks[0].idstr,
            ) from error


class _Handler:
    """The thread that answers the messages; it also takes requests."""

    def __init__(self, protection: WriteProtection, rings: RingSet) -> None:
        self.rings = rings
        self.protection = protection
        self._opener = os.getpid()
        self._request = os.eventfd(0, os.EFD_CLOEXEC)
        self._reply = os.eventfd(0, os.EFD_CLOEXEC)
        self._failure: OSError | None = None
        # A daemon, as the interpreter joins other threads before it runs finalizers.
        self._thread = threading.Thread(target=self._serve, name="dirty-ring", daemon=True)

    def start(self) -> None:
        """Begin to answer messages, then protect the memory.

        Raises:
            SourceError: there can be no thread.
            OSError: the handler has failed.
        """
        try:
            self._thread.start()
        except RuntimeError as error:
            raise SourceError(f"dirty-ring: {error} that answers writes") from error
        # Until it is in C it needs the interpreter's lock, which a writer may hold.
        self.ask(RingRequest.HARVEST)
        self.protection.protect()

    def ask(self, request: RingRequest) -> None:
        """Have the handler serve a request; return when it is done.

        Raises:
            OSError: the handler has failed.
        """
        if self._failure is None:
            os.eventfd_write(self._request, request)
            os.eventfd_read(self._reply)
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Give the memory back, end the thread, close everything; not in a forked child."""
        if os.getpid() != self._opener:
            return
        # First of all, so that nobody waits for an answer any more.
        self.protection.unregister()
        if self._thread.is_alive():
            os.eventfd_write(self._request, RingRequest.STOP)
            self._thread.join()
        self.protection.close()
        os.close(self._request)
        os.close(self._reply)

    def _serve(self) -> None:
        try:
            core.ring_serve(self.rings, self._request, self._reply)
        except OSError as error:
            self._failure = error
            os.eventfd_write(self._reply, 1)
