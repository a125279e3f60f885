"""Dirty limits on vCPUs that really write: what QEMU's rules come to, and that nobody hangs."""

import itertools
import os
import threading
import time

import pytest

from pysampler.core import LogMode
from pysampler.errors import StateError
from pysampler.guest import BlockSpec, Guest, Phases, allocate
from pysampler.guest.measure import GuestMeasure
from pysampler.guest.phases import assign
from pysampler.measuring import exact_observer
from pysampler.migration.dirty_limit import DirtyLimits
from pysampler.vector.measurement import Mode

# About 190 MiB/s, as each page counts once for each harvest of its ring.
WRITER = "uniform:ws=192M,wps=51k,lag=0ms"


@pytest.fixture
def make_limits():
    """Make running guests, each with its limits: workloads, the ring's size, ms of a period."""
    made = []

    def make(*workloads, ring=4096, period_ms=1000, memory=256 << 20):
        ram = allocate([BlockSpec("pc.ram", memory)], zero=1.0)
        phases = Phases.steady(assign(workloads, len(workloads)))
        guest = Guest(ram, phases, 7, dirty_ring_size=ring)
        limits = DirtyLimits(guest, lambda: period_ms)
        made.append((guest, limits))
        guest.cont()
        return guest, limits

    yield make
    for guest, limits in made:
        limits.close()
        guest.close()


def wait_for(condition, limit_s=30):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def written(guest, s):
    before = guest.writes()
    time.sleep(s)
    return [(now - then) / s for now, then in zip(guest.writes(), before, strict=True)]


def rests_after_three_periods(limits, quota):
    """Limit vCPU 0, which is not limited yet; whether it comes to rest near its quota."""
    limits.set(quota)
    assert limits.query() == [(0, quota, 0)]
    assert limits.in_force
    wait_for(lambda: limits.query()[0][2])
    if limits.query()[0][2] <= quota + 25:  # the machine is too slow: there is nothing to limit
        return False
    time.sleep(3.7)
    for _ in range(3):
        if abs(limits.query()[0][2] - quota) > 25:
            return False
        time.sleep(1.1)
    return True


def test_a_fast_writer_rests_near_its_quota_after_three_periods(make_limits):
    _, limits = make_limits(WRITER)
    for _ in range(4):  # others may take the CPU from it meanwhile
        if rests_after_three_periods(limits, 50):
            break
        limits.cancel()
    assert limits.throttle_us() > 0
    wait_for(lambda: 0 < limits.ring_full_us() <= 16_000_000 // 76)  # 0 whenever the vCPU sleeps


def test_the_one_limited_vcpu_is_slowed_and_the_other_is_not(make_limits):
    guest, limits = make_limits(WRITER, WRITER, memory=512 << 20)
    limits.set(50, 1)
    assert [index for index, _, _ in limits.query()] == [1]
    time.sleep(2.5)

    def is_slowed():
        free, limited = written(guest, 1)
        return free > 51_000 / 1.5 and limited < free / 2 and limits.query()[0][2] <= 75

    wait_for(is_slowed)


def test_a_vcpu_that_fills_no_ring_in_a_period_is_not_slowed(make_limits):
    # Many writes, few pages; as a reader, it has nothing that a ring could see.
    guest, limits = make_limits(WRITER, "sweep:ws=40K,wps=100k,lag=0ms")
    limits.set(30)
    time.sleep(2.5)

    def is_slowed():
        limited, busy = written(guest, 1)
        return limited < 51_000 / 1.5 and busy > 100_000 / 1.5

    wait_for(is_slowed)
    assert limits.query()[1][2] == 0


def test_a_reader_on_a_limited_guest_keeps_its_reads(make_limits):
    guest, limits = make_limits(WRITER, "read:of=uniform:ws=192M,wps=51k,lag=0ms")
    limits.set(30)
    time.sleep(2.5)

    def only_the_writer_is_slowed():
        writes, reads = written(guest, 1)
        return writes < 51_000 / 1.5 and reads > 51_000 * 0.9

    wait_for(only_the_writer_is_slowed)
    assert guest.throttled_ns()[1] == 0
    assert limits.query()[1] == (1, 30, 0)


def test_a_vcpu_whose_sleep_is_longer_than_a_period_has_a_ring_in_each(make_limits):
    """As recorded of QEMU 10: quota 20 with 16384 entries rests at 63 while the sleep grows."""
    _, limits = make_limits(WRITER, ring=16384)
    limits.set(20)
    wait_for(lambda: limits.query()[0][2] > 100)
    wait_for(lambda: limits.query()[0][2] <= 100)
    sleep_us = limits.throttle_us()
    assert sleep_us > 1_000_000
    wait_for(lambda: limits.throttle_us() > sleep_us)
    assert 57 <= limits.query()[0][2] <= 100


def test_a_ring_that_is_too_large_for_a_period_slows_nobody(make_limits):
    guest, limits = make_limits(WRITER, ring=65536)
    limits.set(10)
    wait_for(lambda: limits.throttle_us() > 2_000_000)
    wait_for(lambda: written(guest, 1)[0] > 51_000 / 1.5 and limits.query()[0][2] > 100)


def test_a_vcpu_that_sleeps_can_be_stopped_continued_and_let_go(make_limits):
    guest, limits = make_limits(WRITER)
    limits.set(1)
    wait_for(lambda: limits.throttle_us() > 1_000_000)
    n_full = guest.log.file.n_full(0)
    wait_for(lambda: guest.log.file.n_full(0) > n_full)
    time.sleep(0.02)
    began = time.monotonic()
    guest.stop()
    writes = guest.writes()
    time.sleep(0.05)
    assert guest.writes() == writes
    guest.cont()
    guest.stop()
    guest.cont()
    assert time.monotonic() - began < 5
    limits.cancel()
    assert limits.query() == []
    assert not limits.in_force
    assert limits.throttle_us() == limits.ring_full_us() == 0
    before = guest.writes()[0]
    wait_for(lambda: guest.writes()[0] > before + 20_000, 5)
    assert guest.log.file.mode is LogMode.OFF


def test_a_vcpu_at_a_full_ring_goes_on_when_its_limit_is_cancelled(make_limits):
    guest, limits = make_limits("uniform:wps=max", "idle", period_ms=50)
    for _ in range(10):
        limits.set(1)
        time.sleep(0.12)
        limits.cancel(0)
        assert [index for index, _, _ in limits.query()] == [1]
        before = guest.writes()[0]
        wait_for(lambda before=before: guest.writes()[0] > before + 50_000, 5)
    limits.cancel()


def test_the_next_limit_begins_with_the_sleep_of_the_last_one(make_limits):
    """As recorded of QEMU 10: it tells the sleep of an earlier limit before a period has ended."""
    _, limits = make_limits(WRITER)
    limits.set(1)
    wait_for(lambda: limits.throttle_us() > 100_000)
    limits.cancel()
    limits.set(200)
    rates = [rate for _, _, rate in limits.query()]
    assert limits.throttle_us() > 100_000
    assert rates == [0]  # so no period has ended


def test_the_last_cancel_waits_for_the_period_and_no_longer(make_limits):
    _, limits = make_limits("idle", period_ms=400)
    limits.set(10)
    began = time.monotonic()
    limits.cancel()
    assert 0.1 < time.monotonic() - began < 5
    limits.cancel()
    limits.set(0)
    assert limits.query() == []


def test_close_does_not_wait_for_a_vcpu_that_sleeps(make_limits):
    guest, limits = make_limits(WRITER, period_ms=200)
    limits.set(1)
    wait_for(lambda: limits.throttle_us() > 1_000_000)
    began = time.monotonic()
    limits.close()
    assert time.monotonic() - began < 2
    with pytest.raises(StateError, match="ending"):
        limits.set(10)
    limits.close()
    before = guest.writes()[0]
    wait_for(lambda: guest.writes()[0] > before + 20_000, 5)
    assert not any("dirty-limit" in thread.name for thread in threading.enumerate())


def test_the_restraint_makes_a_vcpu_sleep_for_a_share_of_the_time(make_limits):
    guest, limits = make_limits(WRITER)
    limits.set(50, method="v1", pause_s=0.1)

    def slept_ns(s):
        before = guest.throttled_ns()[0]
        time.sleep(s)
        return guest.throttled_ns()[0] - before

    wait_for(lambda: slept_ns(1) > 300_000_000)
    wait_for(lambda: written(guest, 1)[0] < 51_000 / 1.5)
    assert limits.throttle_us() == 0
    limits.cancel()
    assert slept_ns(0.3) < 100_000_000


def test_the_restraint_measures_again_after_its_pause_only(make_limits):
    guest, limits = make_limits("uniform:ws=64M,wps=20k", period_ms=100)
    limits.set(50, method="v1", pause_s=60)
    wait_for(lambda: limits.query()[0][2])
    rate = limits.query()[0][2]
    guest.stop()
    time.sleep(0.5)
    assert limits.query()[0][2] == rate
    began = time.monotonic()
    limits.cancel()
    assert time.monotonic() - began < 3  # not for the pause


def test_a_limit_is_changed_in_its_place_and_by_another_method(make_limits):
    guest, limits = make_limits(WRITER, period_ms=100)
    limits.set(20)
    wait_for(limits.throttle_us)
    limits.set(1000)
    assert limits.query()[0][:2] == (0, 1000)
    wait_for(lambda: limits.throttle_us() == 0)
    limits.set(20)
    wait_for(limits.throttle_us)
    limits.set(20, method="v1", pause_s=0)
    assert limits.throttle_us() == 0
    wait_for(lambda: guest.throttled_ns()[0])
    limits.set(20)
    wait_for(limits.throttle_us)


def test_limits_and_a_migrations_bitmap_do_without_each_other(make_limits):
    guest, limits = make_limits(WRITER, period_ms=100)
    bitmap = guest.shared_log.bitmap()
    limits.set(50)
    wait_for(limits.throttle_us)
    assert any(words.any() for words in bitmap.take())
    bitmap.close()
    wait_for(lambda: limits.query()[0][2])
    bitmap = guest.shared_log.bitmap()
    limits.cancel()
    guest.stop()
    bitmap.take()
    guest.cont()
    wait_for(lambda: any(words.any() for words in bitmap.take()))
    bitmap.close()


NO_RING = "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'"


def test_what_is_wrong_gets_qemus_words(make_limits):
    _, limits = make_limits("idle", "idle")
    for vcpu in (-1, 2):
        for command in (lambda vcpu=vcpu: limits.set(10, vcpu), lambda v=vcpu: limits.cancel(v)):
            with pytest.raises(StateError, match=r"^incorrect cpu index specified$"):
                command()
    with pytest.raises(StateError, match="method 'x' is none of merged, v1"):
        limits.set(10, method="x")
    limits.cancel(1)
    assert limits.query() == []


def test_without_rings_there_are_no_limits(make_limits):
    _, limits = make_limits("idle", ring=0)
    for rate, vcpu in itertools.product((0, 10), (None, 5)):
        with pytest.raises(StateError) as caught:
            limits.set(rate, vcpu)
        assert str(caught.value) == NO_RING
    limits.cancel(5)
    limits.close()


def test_a_measurement_that_reads_the_log_keeps_limits_away(make_limits):
    guest, limits = make_limits("idle")
    observer = exact_observer(GuestMeasure(guest).blocks(), Mode.DIRTY_RING, pid=os.getpid())
    with pytest.raises(StateError, match="is being read by another measurement"):
        limits.set(10)
    assert limits.query() == []
    observer.close()
    limits.set(10)
