# SPDX-License-Identifier: MIT
"""Threads that read, so that their caller can stop waiting for them.

A page that is missing under userfaultfd holds its reader until somebody fills it. Only a deadly
signal ends that wait. So the caller's own thread reads nothing: Ctrl-C interrupts the caller, and a
reader that makes no progress is given up. Readers are daemon threads, which end with the process.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# A reader that got no CPU time from one look to the next, so often in a row, waits for something.
PATIENCE = 10
LOOK_EVERY_S = 1.0

_NO_THREAD = "no thread can be started to read with: raise `ulimit -u` or `ulimit -v`"

Part = TypeVar("Part")
Result = TypeVar("Result")


class StuckError(Exception):
    """A reader waits, and may wait for ever.

    Attributes:
        part: index of the part that it is at.
    """

    def __init__(self, part: int) -> None:
        super().__init__(part)
        self.part = part


class Workers:
    """Runs the parts of a pass in threads, which are new for each pass.

    Args:
        n: how many; fewer run where no more can be started.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._given_up: list[threading.Thread] = []

    @property
    def are_idle(self) -> bool:
        """Whether the threads of a pass that was interrupted have ended, too."""
        return not any(thread.is_alive() for thread in self._given_up)

    def run(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """Return what ``work`` returns for each part; raise what it raised for the first.

        Raises:
            StuckError: a thread waits for a page.
            OSError: not one thread can be started.
        """
        job = _Job(work, parts)
        threads: list[threading.Thread] = []
        try:
            for _ in range(min(self._n, len(parts))):
                threads.append(threading.Thread(target=job.serve, daemon=True))
                try:
                    threads[-1].start()
                except RuntimeError as error:  # a limit of the system's
                    threads.pop()
                    if not threads:
                        raise OSError(_NO_THREAD) from error
                    break  # those that run take all parts
            _wait(job, threads)
        except BaseException:
            job.is_given_up = True
            self._given_up += [thread for thread in threads if thread.ident is not None]
            raise
        if job.errors:
            raise min(job.errors, key=lambda item: item[0])[1]
        return [job.results[part] for part in range(len(parts))]


class _Job(Generic[Part, Result]):
    """The state that the threads of a pass share."""

    def __init__(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> None:
        self._work = work
        self._parts = parts
        self._numbers = iter(range(len(parts)))
        self.results: dict[int, Result] = {}
        self.errors: list[tuple[int, BaseException]] = []
        self.at: dict[int, int] = {}  # thread's native id: the part it is at
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.is_given_up = False

    def serve(self) -> None:
        """Take parts until there are none left."""
        thread, part = threading.get_native_id(), 0
        try:
            for part in self._numbers:
                if self.is_given_up:
                    break
                self.at[thread] = part
                self.results[part] = self._work(self._parts[part])
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self.errors.append((part, error))
        finally:
            self.at.pop(thread, None)
            self._ended.put(None)

    def has_ended_thread(self, timeout_s: float) -> bool:
        """Wait for one more thread to end; return whether it did in time."""
        try:
            self._ended.get(timeout=timeout_s)
        except queue.Empty:
            return False
        return True


def _wait(job: _Job[Part, Result], threads: Sequence[threading.Thread]) -> None:
    n_left, quiet, before = len(threads), 0, -1
    while n_left:
        if job.has_ended_thread(LOOK_EVERY_S):
            n_left -= 1
            continue
        at = job.at.copy()
        now = sum(_cpu_time_ns(thread) for thread in at)
        quiet, before = (quiet + 1 if now == before else 0), now
        # Looks are counted, not seconds: this process may have been stopped meanwhile.
        if at and quiet >= PATIENCE:
            raise StuckError(min(at.values()))


def _cpu_time_ns(thread: int) -> int:
    """Return the CPU time of a thread by its native id; 0 when it has ended."""
    try:
        # Linux's clock id of one thread: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED.
        return time.clock_gettime_ns(~thread << 3 | 6)
    except OSError:
        return 0
