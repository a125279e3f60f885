# SPDX-License-Identifier: MIT
"""The states that a guest can be in, as QEMU 10 has them, and the ways between them."""

from __future__ import annotations

from enum import Enum

from pysampler.errors import StateError


class RunState(str, Enum):
    """A guest's state, spelled as in QMP. Its vCPUs run in `RUNNING` alone."""

    INMIGRATE = "inmigrate"  # waits for an incoming migration
    PRELAUNCH = "prelaunch"  # has never run
    RUNNING = "running"
    PAUSED = "paused"  # by `stop`
    FINISH_MIGRATE = "finish-migrate"  # the last pass of its migration is under way
    POSTMIGRATE = "postmigrate"  # it has migrated: another one runs in its place
    SHUTDOWN = "shutdown"  # it ends


_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    # It becomes what it was at the source, or what `stop` and `cont` have asked for meanwhile.
    RunState.INMIGRATE: frozenset(
        {RunState.PRELAUNCH, RunState.RUNNING, RunState.PAUSED, RunState.SHUTDOWN}
    ),
    RunState.PRELAUNCH: frozenset({RunState.RUNNING, RunState.FINISH_MIGRATE, RunState.SHUTDOWN}),
    RunState.RUNNING: frozenset({RunState.PAUSED, RunState.FINISH_MIGRATE, RunState.SHUTDOWN}),
    RunState.PAUSED: frozenset({RunState.RUNNING, RunState.FINISH_MIGRATE, RunState.SHUTDOWN}),
    # A migration that fails or is cancelled now leaves the guest as it was.
    RunState.FINISH_MIGRATE: frozenset(
        {
            RunState.PRELAUNCH,
            RunState.RUNNING,
            RunState.PAUSED,
            RunState.POSTMIGRATE,
            RunState.SHUTDOWN,
        }
    ),
    RunState.POSTMIGRATE: frozenset({RunState.RUNNING, RunState.SHUTDOWN}),
    RunState.SHUTDOWN: frozenset(),
}

# In QEMU's words. In all other states a guest can be continued.
_CONT_REFUSED = {
    RunState.FINISH_MIGRATE: "Migration is not finalized yet",
    RunState.SHUTDOWN: "Resetting the Virtual Machine is required",
}


def check_transition(state: RunState, to: RunState) -> None:
    """Make sure that a guest may go from one state to another.

    Raises:
        StateError: it may not.
    """
    if to not in _TRANSITIONS[state]:
        raise StateError(f"the guest is in state {state.value}; it cannot become {to.value}")


def check_cont(state: RunState) -> None:
    """Make sure that a guest in this state can be continued.

    Raises:
        StateError: it cannot.
    """
    if state in _CONT_REFUSED:
        raise StateError(_CONT_REFUSED[state])
