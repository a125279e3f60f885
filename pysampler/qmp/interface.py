# SPDX-License-Identifier: MIT
"""The server's interface to a guest, to its measurement and to its migration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pysampler.clock import Clock
    from pysampler.guest.run_state import RunState
    from pysampler.migration.info import MigrationInfo
    from pysampler.migration.settings import Setting
    from pysampler.units import CalcTimeUnit
    from pysampler.vector.measurement import Measurement, Mode


class ServedBlock(Protocol):
    """A RAMBlock."""

    @property
    def idstr(self) -> str:
        """Its name, ``pc.ram``."""

    @property
    def length(self) -> int:
        """Bytes."""


class ServedVcpu(Protocol):
    """One vCPU at one moment."""

    @property
    def index(self) -> int:
        """From 0."""

    @property
    def thread_id(self) -> int:
        """Its OS thread."""

    @property
    def workload(self) -> str:
        """Its present workload, as written on the command line."""

    @property
    def writes(self) -> int:
        """Writes since the guest started."""

    @property
    def writes_per_second(self) -> float:
        """Over about the last second."""


class ServedGuest(Protocol):
    """The guest, as the server uses it. Its methods are called from any thread.

    `blocks`, `state` and `vcpus` are read in the event loop and must not block; the
    others may.
    """

    @property
    def blocks(self) -> Sequence[ServedBlock]:
        """Its RAMBlocks, the main one first."""

    @property
    def state(self) -> RunState:
        """Its run state."""

    def stop(self) -> bool:
        """Stop the vCPUs if they run; return whether they have stopped now.

        Raises:
            StateError: a vCPU does not stop in time.
        """

    def cont(self) -> bool:
        """Let the vCPUs go on if they stand; return whether they do now.

        Raises:
            StateError: the guest cannot run in its state.
        """

    def vcpus(self) -> Sequence[ServedVcpu]:
        """Return a snapshot of the vCPUs."""

    def count_dirty_since(self, monotonic_ns: int) -> dict[str, int]:
        """Return how many pages of each block, by idstr, were written since that time.

        Raises:
            MissingFeatureError: the guest does not keep the truth; the message names the cure.
        """

    def request_shutdown(self) -> None:
        """Ask the process to end; return at once."""


class Measure(Protocol):
    """Measures the guest.

    Attributes:
        modes: the modes that are available.
    """

    @property
    def modes(self) -> frozenset[Mode]:
        """The modes that are available."""

    def __call__(
        self,
        *,
        mode: Mode,
        calc_time_ms: int,
        calc_time_unit: CalcTimeUnit,
        sample_pages: int,
        clock: Clock,
    ) -> Iterator[Measurement]:
        """Measure; yield the vector after each period, the last one with status measured.

        Called and iterated in a thread of its own. ``clock.wait_until`` raises
        MeasurementInterruptedError when the server closes.

        Raises:
            PysamplerError: the measurement failed.
        """


class Emit(Protocol):
    """Sends an event to every client."""

    def __call__(self, name: str, data: dict[str, Any] | None = None, /) -> None:
        """Send it; called from any thread."""


class ServedMigration(Protocol):
    """The guest's migration, at either end. Its methods are called from any thread.

    The errors of a refused command have QEMU's texts. It has changed nothing then. Only
    `set_dirty_limit` and `cancel_dirty_limit` may block, for about a period of the limit.
    """

    def send_events_to(self, emit: Emit) -> None:
        """Send the events MIGRATION, MIGRATION_PASS, STOP and RESUME there from now on."""

    def migrate(self, uri: str, resume: bool = False) -> None:
        """Begin to migrate to an address, and return at once.

        Args:
            uri: ``unix:PATH`` or ``tcp:HOST:PORT``.
            resume: go on with a post-copy that has paused.

        Raises:
            StateError: the guest cannot migrate now, or not as it is set.
            UsageError: the address is none, or none that the guest has.
        """

    def cancel(self) -> None:
        """Cancel the migration, if one runs; return at once.

        Raises:
            StateError: it is in post-copy.
        """

    def incoming(self, uri: str, exit_on_error: bool = True) -> None:
        """Listen for a migration.

        Args:
            uri: as in `migrate`.
            exit_on_error: whether the process ends with exit code 1 when the migration fails.

        Raises:
            StateError: the guest does not wait for one, or one has begun.
            UsageError: the address is none, or cannot be listened at.
        """

    def proceed(self, state: str) -> None:
        """Go on from pre-switchover (migrate-continue).

        Raises:
            StateError: the migration is in another state than the named one.
        """

    def start_postcopy(self) -> None:
        """Ask for the switch to post-copy.

        Raises:
            StateError: it is not enabled, or nothing has been migrated.
        """

    def pause(self) -> None:
        """Pause a post-copy.

        Raises:
            StateError: there is none.
        """

    def recover(self, uri: str) -> None:
        """Listen for the rest of a post-copy that has paused.

        Raises:
            StateError: none has.
        """

    def set_parameters(self, given: Mapping[str, Setting]) -> None:
        """Set some parameters: all of them, or none.

        Raises:
            StateError: one is out of its bounds.
        """

    def set_capabilities(self, given: Sequence[tuple[str, bool]]) -> None:
        """Switch some capabilities on or off: all of them, or none.

        Raises:
            StateError: they do not go together, or a migration runs.
        """

    def parameters(self) -> dict[str, Setting]:
        """Return all parameters: the reply to query-migrate-parameters."""

    def capabilities(self) -> list[dict[str, str | bool]]:
        """Return all capabilities: the reply to query-migrate-capabilities."""

    def info(self) -> MigrationInfo | None:
        """Return what is known of the migration; None when there has been none."""

    def set_dirty_limit(
        self, rate: int, vcpu: int | None, method: str = "merged", pause_s: float = 15
    ) -> None:
        """Limit the dirty rate of vCPUs; 0 ends the limit.

        Args:
            rate: MiB/s of each.
            vcpu: one of them; None: all.
            method: ``merged``, as QEMU has it, or ``v1``, as it was proposed in 2021.
            pause_s: of v1, seconds between two measurements.

        Raises:
            StateError: there is no such vCPU, there are no dirty rings, or a migration that limits
                them runs.
        """

    def cancel_dirty_limit(self, vcpu: int | None) -> None:
        """End the limit of one vCPU, or of all (None).

        Raises:
            StateError: there is no such vCPU, or a migration that limits them runs.
        """

    def dirty_limits(self) -> Sequence[tuple[int, int, int]]:
        """Return the limits in force: index of the vCPU, limit and present rate, both in MiB/s."""
