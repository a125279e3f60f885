"""Stopping, counting and the truth about which pages were written when."""

import gc
import os
import threading
import time
from itertools import islice

import guest_oracle as oracle
import numpy as np
import pytest

from pysampler.errors import MissingFeatureError, UsageError
from pysampler.guest import BlockSpec, Guest, Phases, allocate
from pysampler.guest.phases import assign
from pysampler.validation import theory


def pages(sequence, start, stop):
    return {abs(at) // 4096 for at in islice(sequence, start, stop)}


def test_the_pages_written_between_two_stops_are_counted_exactly(make_guest, let_it_write):
    guest = make_guest("uniform:wps=100k", pages=4099)
    let_it_write(guest, 700)
    first, since = guest.writes()[0], time.monotonic_ns()
    assert guest.count_dirty_since(since) == {"pc.ram": 0}
    let_it_write(guest, 2000)
    written = pages(oracle.uniform(oracle.Random(7), 4099), first, guest.writes()[0])
    assert guest.count_dirty_since(since) == {"pc.ram": len(written)}
    stamps = guest.blocks[0].stamps
    assert set((stamps >= since).nonzero()[0]) == written
    assert guest.count_dirty_since(time.monotonic_ns()) == {"pc.ram": 0}


def test_pages_never_written_are_never_counted(make_guest, let_it_write):
    guest = make_guest("sweep:ws=40K,wps=100k", zero=0, blocks=[BlockSpec("vga", 7 * 4096)])
    let_it_write(guest, 50)
    assert guest.count_dirty_since(0) == {"pc.ram": 10, "vga": 0}


def test_two_vcpus_on_the_same_pages_are_counted_once(make_guest, let_it_write):
    guest = make_guest("sweep:wps=200k", vcpus=2, pages=31)
    let_it_write(guest, 31)
    assert guest.count_dirty_since(0) == {"pc.ram": 31}


def test_the_distinct_pages_are_those_of_theory(make_guest, let_it_write):
    # Eight standard deviations: one false alarm in 10^15.
    guest = make_guest("zipf:theta=0.99,wps=max", pages=4099)
    let_it_write(guest, 5000)
    model = theory.zipf(4099, 0.99).after_writes(guest.writes()[0])
    found = guest.count_dirty_since(0)["pc.ram"]
    assert abs(found - model.mean) < 8 * model.variance**0.5 + 1


def test_a_stopped_guest_does_not_write(make_guest, let_it_write):
    guest = make_guest("uniform:wps=max", "uniform:wps=10k", vcpus=2)
    let_it_write(guest, 100)
    before, memory = guest.writes(), bytes(guest.blocks[0].memory)
    assert not guest.running
    time.sleep(0.02)  # either a vCPU writes now or it does not: nothing to wait for
    assert guest.writes() == before
    assert bytes(guest.blocks[0].memory) == memory


def test_stop_and_cont_from_many_threads_end_as_the_last_one_says(make_guest):
    guest = make_guest("uniform:wps=max", "idle", vcpus=2)

    def toggle():
        for _ in range(50):
            guest.cont()
            guest.stop()

    threads = [threading.Thread(target=toggle) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not guest.running
    before = guest.writes()
    guest.cont()
    while guest.writes()[0] == before[0]:
        pass


def test_the_guests_clock_stands_while_it_is_stopped(make_guest):
    guest = make_guest("idle")
    guest.cont()
    guest.stop()
    before = guest.clock_ns()
    assert guest.clock_ns() == before
    guest.cont()
    assert guest.clock_ns() >= before


def test_counters_are_read_by_anyone_through_proc(make_guest):
    guest = make_guest("uniform", "idle", "sweep", vcpus=3)
    guest.cont()
    while min(guest.writes()[0], guest.writes()[2]) < 100:
        time.sleep(0.001)
    guest.stop()
    path = f"/proc/{os.getpid()}/fd/{guest.counters.fd}"
    slots = np.fromfile(path, dtype=np.uint64).reshape(-1, 8)
    assert tuple(int(slot[0]) for slot in slots) == guest.writes()


def test_vcpus_are_os_threads_with_qemu_like_names(make_guest):
    guest = make_guest("sweep:wps=1k", vcpus=2)
    guest.cont()
    while 0 in guest.writes():
        time.sleep(0.001)
    for vcpu in guest.vcpus():
        with open(f"/proc/self/task/{vcpu.thread_id}/comm") as comm:
            assert comm.read() == f"CPU {vcpu.index}/EMU\n"
        assert vcpu.workload == "sweep:wps=1k"
        assert vcpu.writes > 0


def test_without_truth_there_is_no_count(make_guest):
    with pytest.raises(MissingFeatureError, match="--truth"):
        make_guest("idle", truth=False).count_dirty_since(0)


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ("uniform:ws=2M", "ws is larger than pc.ram"),
        ("uniform:block=vga", "no such block; there is pc.ram"),
        ("kv:ws=516K", "do not fit into a working set"),
    ],
)
def test_a_workload_that_does_not_fit_its_block_is_refused(make_guest, workload, message):
    with pytest.raises(UsageError, match=message):
        make_guest(workload)


def descriptors():
    gc.collect()  # counters and stamps go with their last reader
    return len(os.listdir("/proc/self/fd"))


def test_a_closed_guest_leaves_no_thread_and_no_descriptor():
    before = threading.active_count(), descriptors()
    ram = allocate([BlockSpec("pc.ram", 31 * 4096)], truth=True)
    guest = Guest(ram, Phases.steady(assign(["uniform:wps=max", "idle"], 2)))
    guest.cont()
    guest.close()
    guest.close()
    del guest, ram
    assert (threading.active_count(), descriptors()) == before
