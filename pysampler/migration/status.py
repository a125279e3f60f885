# SPDX-License-Identifier: MIT
"""The states of a migration, as QEMU 10 has them, and the ways between them."""

from __future__ import annotations

import threading
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class MigrationStatus(str, Enum):
    """The state of one end of a migration, spelled as in QMP (qapi/migration.json)."""

    NONE = "none"
    SETUP = "setup"  # it connects, or waits for its peer
    ACTIVE = "active"
    PRE_SWITCHOVER = "pre-switchover"  # vCPUs are stopped; it waits for migrate-continue
    DEVICE = "device"  # vCPUs are stopped; the last pass is under way
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"


_S = MigrationStatus

# Both ends together; the destination has neither PRE_SWITCHOVER nor the two of a cancel.
_TRANSITIONS: dict[MigrationStatus, frozenset[MigrationStatus]] = {
    _S.NONE: frozenset({_S.SETUP}),
    _S.SETUP: frozenset({_S.ACTIVE, _S.FAILED, _S.CANCELLING}),
    _S.ACTIVE: frozenset({_S.PRE_SWITCHOVER, _S.DEVICE, _S.COMPLETED, _S.FAILED, _S.CANCELLING}),
    _S.PRE_SWITCHOVER: frozenset({_S.DEVICE, _S.FAILED, _S.CANCELLING}),
    _S.DEVICE: frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLING}),
    _S.CANCELLING: frozenset({_S.CANCELLING, _S.CANCELLED}),  # a second cancel says so again
    _S.CANCELLED: frozenset(),
    _S.COMPLETED: frozenset(),
    _S.FAILED: frozenset(),
}

# A migration is under way.
RUNNING = frozenset({_S.SETUP, _S.ACTIVE, _S.PRE_SWITCHOVER, _S.DEVICE, _S.CANCELLING})


class StatusCell:
    """The status of one end of a migration. Any thread may read and change it.

    Args:
        changed: is called with each new status, in their order.
    """

    def __init__(self, changed: Callable[[MigrationStatus], object]) -> None:
        self._changed = changed
        self._lock = threading.Lock()
        self._value = MigrationStatus.NONE

    @property
    def value(self) -> MigrationStatus:
        """The status now."""
        return self._value

    def change(self, to: MigrationStatus) -> bool:
        """Go to another status if there is a way; return whether it has gone.

        Of two threads that end a migration, the first one decides how it ended.
        """
        with self._lock:
            if to not in _TRANSITIONS[self._value]:
                return False
            self._value = to
            self._changed(to)
            return True
