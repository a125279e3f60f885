# SPDX-License-Identifier: MIT
"""Let go of vCPUs that a tracker holds in a write, where nobody else is left to do so."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from pysampler import core
from pysampler.core import Range
from pysampler.tracking.dirty_ring import own_thread_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pysampler.guest.guest import Guest

HELD_S = 5.0  # a tracker answers within milliseconds; its cleanup process lets go after two seconds

_WAITS_FOR_A_TRACKER = "handle_userfault"  # the kernel's function, as wchan names it


class HeldVcpus:
    """Looks after the vCPUs of a guest.

    A tracker and its cleanup process may both have been killed or stopped. The guest, which
    has offered the userfaultfds, gives itself its memory back then.

    Args:
        guest: the guest.
        offered: its userfaultfds.
    """

    def __init__(self, guest: Guest, offered: Sequence[int]) -> None:
        self._guest = guest
        self._offered = offered
        self._wchans = _wchans()
        # By thread id: since when a vCPU has waited in one write, and how many it had done.
        self._held: dict[int, tuple[float, int]] = {}

    def look(self) -> None:
        """Let all vCPUs go if one has waited for `HELD_S`; to be called about once a tick."""
        now = time.monotonic()
        held = {}
        for thread_id, writes in self._guest.progress():
            if _waiting_place(self._wchans.get(thread_id)) == _WAITS_FOR_A_TRACKER:
                since, before = self._held.get(thread_id, (now, writes))
                held[thread_id] = (since if before == writes else now, writes)
        self._held = held
        if any(now - since >= HELD_S for since, _ in held.values()):
            self._let_go()
            self._held = {}

    def _let_go(self) -> None:
        for fd in self._offered:
            for block in self._guest.blocks:
                with suppress(OSError):  # it was not registered with this one
                    core.uffd_unregister(fd, Range(block.address, block.length, first_bit=0))


def _wchans() -> dict[int, str]:
    """Return, by thread id, the wchan file of each thread of this process.

    /proc may be another pid namespace's, and then its numbers are not ours.
    """
    found = {}
    with suppress(OSError):  # no /proc
        for number in os.listdir("/proc/self/task"):
            folder = f"/proc/self/task/{number}"
            with suppress(OSError):  # it has ended
                found[own_thread_id(folder)] = f"{folder}/wchan"
    return found


def _waiting_place(wchan: str | None) -> str:
    if wchan is None:
        return ""
    try:
        with open(wchan, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
