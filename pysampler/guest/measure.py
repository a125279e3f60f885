# SPDX-License-Identifier: MIT
"""What calc-dirty-rate runs on the guest: the sampler and the exact modes, from within."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.measuring import make_observer
from pysampler.memory.source.file import file_memory_block
from pysampler.sampling.sampler import Sampler
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pysampler.clock import Clock
    from pysampler.guest.guest import Guest
    from pysampler.memory.ramblock import RAMBlock
    from pysampler.units import CalcTimeUnit
    from pysampler.vector.measurement import Measurement


class GuestMeasure:
    """Measures a guest of this process, as `pysampler.qmp.interface.Measure` asks for.

    Attributes:
        modes: all of them, but for dirty-ring if the guest has no rings. The exact ones read the
            log that the vCPUs keep, or userfaultfd while a migration or a dirty limit reads it.
    """

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        without = frozenset() if guest.dirty_ring_size else frozenset({Mode.DIRTY_RING})
        self.modes = frozenset(Mode) - without

    def blocks(self) -> list[RAMBlock]:
        """Return the guest's RAM as memfds, whose holes sampling does not fill."""
        return [
            file_memory_block(f"/proc/self/fd/{block.fd}", block.idstr)
            for block in self._guest.blocks
        ]

    def __call__(
        self,
        *,
        mode: Mode,
        calc_time_ms: int,
        calc_time_unit: CalcTimeUnit,
        sample_pages: int,
        clock: Clock,
    ) -> Iterator[Measurement]:
        """Measure; yield the vector after each period.

        Raises:
            PysamplerError: the measurement failed.
        """
        observer = make_observer(self.blocks(), mode, sample_pages=sample_pages)
        with Sampler(observer, calc_time_ms, calc_time_unit, clock) as sampler:
            yield from sampler
