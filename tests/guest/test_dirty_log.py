"""The log that vCPUs keep of what they write, against the truth, memory itself and userfaultfd."""

import os
import threading
import time

import numpy as np
import pytest

from pysampler.core import LOG_HOLD_S, LOG_RING, LOG_SPARE, LogMode
from pysampler.errors import FaultError, SourceError
from pysampler.guest import BlockSpec, Guest, Phases, allocate
from pysampler.guest.measure import GuestMeasure
from pysampler.guest.phases import assign
from pysampler.measuring import exact_observer
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.guest_log import GuestLog
from pysampler.tracking.probe import probe
from pysampler.vector.measurement import Mode

VGA = BlockSpec("vga", 67 * 4096)
WORKLOADS = [
    ("uniform:wps=max",),
    ("uniform:wps=max", "sweep:wps=max"),
    ("silent:of=uniform:wps=max", "free:of=hotcold:hot=10%,hits=90%,wps=max"),
    ("kv:wps=max", "zipf:theta=0.99,wps=max", "sweep:block=vga,wps=max"),
]


def unpacked(words, n):
    return np.unpackbits(words.view(np.uint8), count=n, bitorder="little").astype(bool)


@pytest.fixture
def open_log():
    """Open the log of a guest of this process, on, over all its blocks."""
    logs = []

    def make(guest, mode=LogMode.BITMAP):
        logs.append(GuestLog(GuestMeasure(guest).blocks(), os.getpid()))
        logs[-1].start(mode)
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def guest_of(make_guest, workloads):
    return make_guest(*workloads, vcpus=len(workloads), pages=4099, blocks=[VGA])


def take_all(guest, log):
    return [unpacked(log.take(i), block.length // 4096) for i, block in enumerate(guest.blocks)]


@pytest.mark.parametrize("workloads", WORKLOADS, ids=lambda w: str(len(w)) + w[-1][:5])
def test_what_is_taken_while_vcpus_run_flat_out_is_to_the_page_what_they_wrote(
    make_guest, let_it_write, open_log, workloads
):
    guest = guest_of(make_guest, workloads)
    let_it_write(guest, 300)
    log, since = open_log(guest), time.monotonic_ns()
    guest.cont()
    taken = take_all(guest, log)
    for _ in range(200):
        taken = [a | b for a, b in zip(taken, take_all(guest, log), strict=True)]
    goal = [n + 5000 for n in guest.writes()]
    while any(a < b for a, b in zip(guest.writes(), goal, strict=True)):
        time.sleep(0.001)
    guest.stop()
    taken = [a | b for a, b in zip(taken, take_all(guest, log), strict=True)]
    for block, pages in zip(guest.blocks, taken, strict=True):
        assert np.array_equal(pages, block.stamps >= since), block.idstr
    assert not any(pages.any() for pages in take_all(guest, log))


@pytest.mark.parametrize("workloads", WORKLOADS, ids=lambda w: str(len(w)) + w[-1][:5])
def test_pages_copied_after_their_bit_was_taken_end_as_the_guests_are(
    make_guest, open_log, workloads
):
    guest = guest_of(make_guest, workloads)
    log = open_log(guest)
    guest.cont()
    memories = [np.frombuffer(block.memory, np.uint8).reshape(-1, 4096) for block in guest.blocks]
    copies = [memory.copy() for memory in memories]

    def copy_dirty_pages():
        for copy, memory, dirty in zip(copies, memories, take_all(guest, log), strict=True):
            copy[dirty] = memory[dirty]

    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        copy_dirty_pages()
    guest.stop()
    copy_dirty_pages()
    for copy, memory in zip(copies, memories, strict=True):
        assert np.array_equal(copy, memory)


@pytest.fixture
def watch():
    """Have userfaultfd watch the blocks of a guest that is stopped."""
    works = {finding.name: finding.works for finding in probe()}
    if not all(works[name] for name in ("userfaultfd write-protect, asynchronous", "PAGEMAP_SCAN")):
        pytest.skip("no userfaultfd to compare with; see pysampler doctor")
    opened = []

    def make(guest):
        opened.append(DirtyBitmap(GuestMeasure(guest).blocks()))
        opened[-1].warm_up()
        opened[-1].baseline()
        return opened[-1]

    yield make
    for observer in opened:
        observer.close()


@pytest.mark.parametrize("workloads", WORKLOADS[:2], ids=["one", "two"])
def test_log_and_userfaultfd_find_the_same_pages(
    make_guest, let_it_write, open_log, watch, workloads
):
    guest = guest_of(make_guest, workloads)
    log, oracle = open_log(guest), watch(guest)
    let_it_write(guest, 1000)
    oracle.compare()
    pages = oracle.memory.dirty_pages("pc.ram")
    assert np.array_equal(take_all(guest, log)[0], pages)
    assert 0 < pages.sum() < len(pages)


@pytest.mark.parametrize(
    "workloads",
    [
        ("uniform:ws=128M,wps=max",),
        ("uniform:ws=128M,wps=max", "hotcold:hot=10%,hits=90%,ws=128M,wps=max"),
        (
            "uniform:ws=128M,wps=max",
            "zipf:theta=0.99,ws=128M,wps=max",
            "sweep:ws=132K,block=vga,wps=max",
        ),
    ],
    ids=len,
)
def test_log_and_userfaultfd_find_the_same_pages_of_vcpus_whose_log_is_taken_as_they_run(
    make_guest, open_log, watch, workloads
):
    guest = make_guest(*workloads, vcpus=len(workloads), pages=65537, blocks=[VGA])
    log, oracle = open_log(guest), watch(guest)
    taken, n_takes = take_all(guest, log), 0
    guest.cont()
    while n_takes < 5 or min(guest.writes()) < 5000:
        taken = [a | b for a, b in zip(taken, take_all(guest, log), strict=True)]
        n_takes += any(pages.any() for pages in taken)
    guest.stop()
    taken = [a | b for a, b in zip(taken, take_all(guest, log), strict=True)]
    oracle.compare()
    for block, pages in zip(guest.blocks, taken, strict=True):
        assert np.array_equal(pages, oracle.memory.dirty_pages(block.idstr)), block.idstr
    assert 0 < taken[0].sum() < len(taken[0])


def test_nothing_is_logged_while_the_log_is_off(make_guest, let_it_write, open_log):
    guest = make_guest("uniform:wps=max")
    log = open_log(guest)
    log.close()
    let_it_write(guest, 500)
    assert not guest.log.file.bits(0).any()


@pytest.mark.parametrize("mode", [Mode.DIRTY_BITMAP, Mode.DIRTY_RING])
@pytest.mark.parametrize("workloads", WORKLOADS, ids=lambda w: str(len(w)) + w[-1][:5])
def test_observers_count_what_was_written_between_two_stops(
    make_guest, let_it_write, mode, workloads
):
    guest = guest_of(make_guest, workloads)
    observer = exact_observer(GuestMeasure(guest).blocks(), mode)
    try:
        observer.warm_up()
        let_it_write(guest, 700)
        for _ in range(3):
            since = time.monotonic_ns()
            observer.baseline()
            assert observer.compare().pages == 0
            let_it_write(guest, 3000)
            expected = sum(guest.count_dirty_since(since).values())
            assert observer.compare().pages == expected
            by_vcpu = dict(observer.vcpu_pages())
            if mode is Mode.DIRTY_RING:
                assert sum(by_vcpu.values()) == expected
                assert set(by_vcpu) == set(range(len(workloads)))
        assert observer.details()["tracking"] == "vcpu-log"
    finally:
        observer.close()
    assert guest.log.file.mode is LogMode.OFF


def test_the_ring_names_who_wrote_a_page_first(make_guest, let_it_write):
    guest = make_guest("sweep:wps=max", "sweep:block=vga,wps=max", vcpus=2, blocks=[VGA])
    observer = exact_observer(GuestMeasure(guest).blocks(), Mode.DIRTY_RING)
    observer.warm_up()
    observer.baseline()
    let_it_write(guest, 1000)
    observer.compare()
    assert observer.vcpu_pages() == ((0, 257), (1, 67))
    observer.close()


def test_no_page_is_lost_that_is_written_while_the_baseline_is_made(make_guest):
    guest = make_guest("sweep:ws=512K,wps=max", vcpus=2)
    observer = exact_observer(GuestMeasure(guest).blocks(), Mode.DIRTY_RING)
    guest.cont()
    observer.warm_up()
    for _ in range(20):
        observer.baseline()
        before = guest.writes()
        wait_for(lambda before=before: min(np.subtract(guest.writes(), before)) > 256)
        assert observer.compare().pages == 128
    observer.close()


def test_a_part_of_the_blocks_is_counted_alone(make_guest, let_it_write):
    guest = make_guest("sweep:wps=max", "sweep:block=vga,wps=max", vcpus=2, blocks=[VGA])
    observer = exact_observer(GuestMeasure(guest).blocks()[1:], Mode.DIRTY_RING)
    observer.warm_up()
    observer.baseline()
    let_it_write(guest, 1000)
    assert observer.compare().pages == 67
    assert observer.vcpu_pages() == ((0, 0), (1, 67))
    observer.close()


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def standing(make_guest, open_log):
    """A guest that sweeps more pages than its ring holds, and its log, which nobody harvests."""
    guest = make_guest("sweep:wps=max", pages=3 * LOG_RING)
    log = open_log(guest, LogMode.BITMAP_AND_RING)
    guest.cont()
    wait_for(lambda: log.file.n_full(0))
    return guest, log


def test_a_full_ring_stops_its_vcpu_until_it_is_harvested(standing):
    guest, log = standing
    stood, writes = log.file.stood_ns(0), guest.writes()[0]
    assert LOG_RING <= writes < LOG_RING + LOG_SPARE
    time.sleep(0.05)
    assert guest.writes()[0] == writes
    seen = log.outside()
    assert log.file.harvest(0, seen) == writes
    wait_for(lambda: log.file.n_full(0) == 2)
    assert guest.writes()[0] > writes
    assert log.file.stood_ns(0) > stood


def test_a_guest_that_stands_at_a_full_ring_can_be_stopped_and_closed(standing):
    guest, log = standing
    n_full = log.file.n_full(0)
    guest.stop()
    guest.cont()
    time.sleep(0.02)
    assert log.file.n_full(0) == n_full  # it is still the same ring that is full
    guest.close()
    assert not any("vCPU" in thread.name for thread in threading.enumerate())


def test_a_vcpu_sleeps_at_each_full_ring_as_it_was_told(standing):
    guest, log = standing
    log.file.sleep_at_full(0, 60_000_000_000)
    log.file.harvest(0, log.outside())
    writes = guest.writes()[0]
    time.sleep(0.1)
    assert guest.writes()[0] == writes
    guest.stop()  # does not wait for the sleep to end


def test_a_vcpu_that_stands_too_long_gives_the_log_up(standing):
    guest, log = standing
    writes = guest.writes()[0]
    began = time.monotonic()
    wait_for(lambda: guest.writes()[0] > writes)
    assert time.monotonic() - began > LOG_HOLD_S / 2
    assert not log.is_kept()


def test_an_observer_says_that_the_log_was_given_up(make_guest):
    guest = make_guest("idle")
    observer = exact_observer(GuestMeasure(guest).blocks(), Mode.DIRTY_BITMAP)
    observer.warm_up()
    observer.baseline()
    guest.log.file.set_mode(LogMode.GIVEN_UP)
    with pytest.raises(FaultError, match="dirty log has ended: a vCPU stood at a full ring"):
        observer.compare()
    observer.close()


def test_a_second_reader_is_refused_until_the_first_has_ended(make_guest):
    guest = make_guest("idle")
    blocks = GuestMeasure(guest).blocks()
    first = exact_observer(blocks, Mode.DIRTY_BITMAP)
    with pytest.raises(SourceError, match="is being read by another measurement"):
        exact_observer(blocks, Mode.DIRTY_RING)
    first.close()
    exact_observer(blocks, Mode.DIRTY_RING).close()


def test_a_reader_that_reads_is_not_ended_and_one_that_has_gone_is(make_guest, open_log):
    guest = make_guest("idle")
    log = open_log(guest)
    guest.log.end_if_unread()
    assert log.is_kept()
    log.close()
    guest.log.file.set_mode(LogMode.BITMAP_AND_RING)  # as a reader that was killed leaves it
    guest.log.end_if_unread()
    assert guest.log.file.mode is LogMode.OFF


def test_logging_costs_each_first_write_what_is_asked_for():
    ram = allocate([BlockSpec("pc.ram", 257 * 4096)], zero=1.0)
    guest = Guest(ram, Phases.steady(assign(["sweep:wps=max"], 1)), logging_cost_ns=1_000_000)
    log = GuestLog(GuestMeasure(guest).blocks(), os.getpid())
    log.start(LogMode.BITMAP)
    begin = time.monotonic_ns()
    guest.cont()
    wait_for(lambda: guest.writes()[0] > 257)
    assert time.monotonic_ns() - begin >= 257 * 1_000_000
    log.close()
    guest.close()
