# SPDX-License-Identifier: MIT
"""A process as the readers of one measurement see it: opened once, examined once in a pass."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pysampler.host.smaps import read_smaps
from pysampler.memory.reader.descriptor import Descriptor

if TYPE_CHECKING:
    from pysampler.host.maps import Mapping

_ENTRY = 8  # bytes of a pagemap entry
_USERFAULTFD = "anon_inode:[userfaultfd]"
# smaps is read for at most this part of the time: see there for what it costs the process.
_SMAPS_SHARE = 0.01


class ProcessView:
    """A process, from outside.

    An open pagemap or mem of /proc/PID belongs to the address space, not to the pid: it ends
    with an exit or exec, and is not mistaken for that of a later process of the same pid.

    Attributes:
        pid: the process.
        pagemap: its /proc/PID/pagemap.
        mappings: those of this pass, once somebody has read them; None before that.

    Args:
        pid: the process.

    Raises:
        OSError: there is no such process, or it may not be read.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pagemap = Descriptor(f"/proc/{pid}/pagemap")
        self.mappings: list[Mapping] | None = None
        self._memory: Descriptor | None = None
        self._lock = threading.Lock()
        self._plain: set[str] = set()  # descriptors of it that are no userfaultfd
        self._holds_userfaultfd: bool | None = None  # None: not looked at in this pass
        self._elsewhere: list[str] | None = None
        self._awaited: list[Mapping] = []
        self._next_smaps_s = 0.0

    def has_ended(self) -> bool:
        """Return whether the address space is no more."""
        return len(os.pread(self.pagemap.fd, _ENTRY, 0)) < _ENTRY

    def begin_pass(self) -> None:
        """Forget observations of the last pass."""
        self.mappings = None
        self._holds_userfaultfd = None

    def memory(self) -> int:
        """Return a descriptor of /proc/PID/mem.

        A page that is missing under userfaultfd makes its read fail at once, where
        process_vm_readv() waits until somebody fills it. But it takes twice as long.
        """
        with self._lock:
            if self._memory is None:
                self._memory = Descriptor(f"/proc/{self.pid}/mem")
            return self._memory.fd

    def holds_userfaultfd(self) -> bool:
        """Return whether a process held a userfaultfd that may fill this process's pages.

        The answer is that of the first call in this pass. Other processes may hold the
        descriptor. They are looked for once, and do not count while this process has no mapping
        under userfaultfd. A holder that is another user's, or in a pid namespace that we cannot
        see, is not found.
        """
        with self._lock:
            if self._elsewhere is None:
                self._elsewhere = _userfaultfds_of_others(self.pid)
            if self._holds_userfaultfd is None:
                self._holds_userfaultfd = self._look_for_userfaultfd() or (
                    any(map(_is_userfaultfd, self._elsewhere)) and bool(self._registered())
                )
            return self._holds_userfaultfd

    def awaited(self) -> list[Mapping]:
        """Return the mappings whose missing pages the holder of a userfaultfd will fill."""
        if not self.holds_userfaultfd():
            return []
        with self._lock:
            return self._registered()

    def _registered(self) -> list[Mapping]:
        """Return the mappings under userfaultfd, as of a recent look."""
        began_s = time.monotonic()
        if began_s >= self._next_smaps_s:
            with suppress(OSError):  # it may have ended; has_ended() will tell
                self._awaited = [m for m in read_smaps(self.pid) if m.flags and "um" in m.flags]
            ended_s = time.monotonic()
            self._next_smaps_s = ended_s + (ended_s - began_s) / _SMAPS_SHARE
        return self._awaited

    def _look_for_userfaultfd(self) -> bool:
        folder = f"/proc/{self.pid}/fd"
        try:
            names = set(os.listdir(folder))
        except OSError:
            return False
        # A number that was closed and is a userfaultfd now is not looked at again: there may be
        # tens of thousands, and a read that waits is ended anyway (workers.py).
        self._plain &= names
        found = {name for name in names - self._plain if _is_userfaultfd(f"{folder}/{name}")}
        self._plain |= names - found
        return bool(found)

    def close(self) -> None:
        """Close the descriptors; a second call does nothing."""
        self.pagemap.close()
        if self._memory is not None:
            self._memory.close()


def _is_userfaultfd(path: str) -> bool:
    try:
        return os.readlink(path) == _USERFAULTFD
    except OSError:  # closed meanwhile, or not for us to see
        return False


def _userfaultfds_of_others(pid: int) -> list[str]:
    """Return the userfaultfds that other processes hold."""
    found: list[str] = []
    for other in os.listdir("/proc"):
        if other.isdecimal() and int(other) != pid:
            folder = f"/proc/{other}/fd"
            with suppress(OSError):
                paths = [f"{folder}/{name}" for name in os.listdir(folder)]
                found += filter(_is_userfaultfd, paths)
    return found
