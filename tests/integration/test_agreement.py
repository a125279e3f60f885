"""Sampling, the exact modes and the guest's own truth agree on one guest at one time.

The guest is stopped at the baseline and at the comparison, so that "since the baseline" is the
same for all of them.
"""

import time

import numpy as np
import pytest

from pysampler import Mode
from pysampler.errors import MissingFeatureError
from pysampler.guest import BlockSpec, Content, Guest, Phases, allocate
from pysampler.guest.measure import GuestMeasure
from pysampler.guest.phases import assign
from pysampler.sampling.page_sampling import PageSampling
from pysampler.sampling.plan import PROFILES
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing

N_PAGES = 4099 * 4
WORKLOADS = [
    "hotcold:hot=10%,hits=90%,wps=max",
    "zipf:theta=0.99,wps=max",
    "sweep:wps=max,ws=16M",
    "kv:mix=A,value=100-5000,wps=max",
    "uniform:block=vga,wps=max",
    "silent:wps=max",
    "free:of=sweep:wps=max",
]


@pytest.fixture(params=WORKLOADS)
def guest(request):
    """A stopped guest of two blocks and two vCPUs, one of them always uniform."""
    specs = [BlockSpec("pc.ram", N_PAGES * 4096), BlockSpec("vga", 257 * 4096)]
    ram = allocate(specs, zero=0.3, content=Content.MIXED, seed=7, truth=True)
    guest = Guest(ram, Phases.steady(assign([request.param, "uniform:wps=max"], 2)), 7)
    # A silent write does not, nor a reader's of a store, nor making zero what is zero already.
    guest.changes_content = not request.param.startswith(("silent", "kv", "free"))
    yield guest
    guest.close()


@pytest.fixture(params=[Mode.DIRTY_BITMAP, Mode.DIRTY_RING], ids=lambda mode: mode.value)
def exact(request, guest):
    """The guest's memory under exact tracking."""
    observer = observe(guest, request.param)
    yield observer
    observer.close()


def observe(guest, mode):
    blocks = GuestMeasure(guest).blocks()
    try:
        if mode is Mode.DIRTY_BITMAP:
            return DirtyBitmap(blocks)
        return DirtyRing(blocks, {vcpu.index: vcpu.thread_id for vcpu in guest.vcpus()})
    except MissingFeatureError as error:
        pytest.skip(str(error))


def run_for_writes(guest, writes):
    goal = sum(guest.writes()) + writes
    guest.cont()
    while sum(guest.writes()) < goal:
        time.sleep(0.0005)
    guest.stop()


def test_all_ways_of_measuring_agree(guest, exact):
    sampling = PageSampling(
        GuestMeasure(guest).blocks(), profile=PROFILES["qemu"], sample_pages=16384, seed=1
    )
    run_for_writes(guest, 1000)
    sampling.warm_up()
    exact.warm_up()
    run_for_writes(guest, 1000)  # under way when the measurement begins, and not part of it
    sampling.baseline()
    exact.baseline()
    since = time.monotonic_ns()
    for _ in range(3):
        run_for_writes(guest, 3000)
        truth = guest.count_dirty_since(since)
        assert exact.compare().pages == sum(truth.values())
        for block in guest.blocks:
            written = block.stamps >= since
            assert np.array_equal(exact.memory.dirty_pages(block.idstr), written)
    sampled = sampling.compare().pages
    sampling.close()
    # What is drawn with replacement is binomial; six standard deviations and a sample are
    # exceeded once in 10^9. Sampling sees content, so writes that change none are not dirty.
    n = sampling.n_sampled_pages
    share = sum(truth.values()) / sampling.n_total_pages
    distance = 6 * (n * share * (1 - share)) ** 0.5 + 1
    assert sampled <= n * share + distance
    if guest.changes_content:
        assert sampled >= n * share - distance


def test_each_page_of_the_ring_has_its_vcpu(guest):
    exact = observe(guest, Mode.DIRTY_RING)
    exact.warm_up()
    exact.baseline()
    since = time.monotonic_ns()
    run_for_writes(guest, 2000)
    assert exact.compare().pages == sum(pages for _, pages in exact.vcpu_pages())
    assert [vcpu for vcpu, _ in exact.vcpu_pages()] == [0, 1]
    assert sum(guest.count_dirty_since(since).values()) == exact.compare().pages
    exact.close()
