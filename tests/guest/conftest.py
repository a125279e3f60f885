import time

import pytest

from pysampler.core import LOG_RING
from pysampler.errors import PysamplerError
from pysampler.guest import BlockSpec, Content, Guest, Phases, allocate
from pysampler.guest.phases import assign


@pytest.fixture
def make_guest():
    """Make stopped guests: workloads and, by keyword, what they run on."""
    guests = []

    def make(
        *workloads, pages=257, vcpus=1, seed=7, zero=1.0, truth=True, blocks=(), ring=LOG_RING
    ):
        specs = [BlockSpec("pc.ram", pages * 4096), *blocks]
        ram = allocate(specs, zero=zero, content=Content.MIXED, seed=seed, truth=truth)
        try:
            phases = Phases.steady(assign(workloads, vcpus))
            guests.append(Guest(ram, phases, seed, dirty_ring_size=ring))
        except PysamplerError:
            ram.close()
            raise
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture
def let_it_write():
    """Run a guest until each vCPU has written so often, and stop it."""

    def run(guest, writes):
        goals = [before + writes for before in guest.writes()]
        guest.cont()
        while any(now < goal for now, goal in zip(guest.writes(), goals, strict=True)):
            time.sleep(0.0005)
        guest.stop()

    return run
