# SPDX-License-Identifier: MIT
"""The server's interface to a guest, and to its measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pysampler.clock import Clock
    from pysampler.guest.run_state import RunState
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
