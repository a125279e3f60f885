import mmap
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from subject import subject
from writers import HUGE, KINDS, PAGE, anonymous, filled, memfd, tracking, write_page

from pysampler.errors import FaultError, SourceError, UsageError
from pysampler.memory.source import buffer_block
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads

MAP_HUGETLB = 0x40000

pytestmark = pytest.mark.usefixtures("needs_dirty_ring")


class Writer:
    """A thread that writes pages when told, and counts what it has written."""

    def __init__(self, memory):
        self._memory = memory
        self._orders = []
        self._told, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self.n_written = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._done.acquire()

    def _run(self):
        self.tid = threading.get_native_id()
        self._done.release()
        while True:
            self._told.acquire()
            pages = self._orders.pop()
            if pages is None:
                return
            for page in pages:
                write_page(self._memory, page)
                self.n_written += 1
            self._done.release()

    def begin(self, pages):
        self._orders.append(pages)
        self._told.release()

    def finish(self):
        self._done.acquire()

    def write(self, pages):
        self.begin(pages)
        self.finish()

    def end(self):
        self._orders.append(None)
        self._told.release()
        self._thread.join()


def dirty(observer):
    return set(np.flatnonzero(observer.memory.dirty_pages("buffer")).tolist())


def until(condition):
    """Wait for what another thread will bring about for sure."""
    while not condition():
        time.sleep(0.001)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(
    one=st.sets(st.integers(0, 512)),
    other=st.sets(st.integers(0, 512)),
    capacity=st.sampled_from([1, 7, 4096]),
)
def test_each_page_counts_for_the_vcpu_that_wrote_it_first(kind, one, other, capacity):
    memory = KINDS[kind](513)
    writers = [Writer(memory), Writer(memory)]
    vcpus = {index: writer.tid for index, writer in enumerate(writers)}
    with tracking(DirtyRing([buffer_block(memory)], vcpus, capacity=capacity)) as observer:
        writers[0].write(one)
        writers[1].write(other)
        assert observer.compare().pages == len(one | other)
        assert observer.vcpu_pages() == ((0, len(one)), (1, len(other - one)))
        assert dirty(observer) == one | other
    for writer in writers:
        writer.end()


def test_two_vcpus_that_write_at_once_are_counted_exactly():
    n = 1 << 13
    memory = anonymous(n)
    writers = [Writer(memory), Writer(memory)]
    vcpus = {3: writers[0].tid, 5: writers[1].tid}
    order = np.random.default_rng(6).permutation(n).tolist()
    with tracking(DirtyRing([buffer_block(memory)], vcpus, capacity=64)) as observer:
        writers[0].begin(order[:3001])
        writers[1].begin(order[3001:7000])
        for writer in writers:
            writer.finish()
        assert observer.compare().pages == 7000
        assert observer.vcpu_pages() == ((3, 3001), (5, 3999))
        assert dirty(observer) == set(order[:7000])
    for writer in writers:
        writer.end()


def test_vcpus_that_meet_at_the_same_pages_share_them():
    n = 1 << 12
    memory = anonymous(n)
    writers = [Writer(memory), Writer(memory)]
    vcpus = {index: writer.tid for index, writer in enumerate(writers)}
    with tracking(DirtyRing([buffer_block(memory)], vcpus)) as observer:
        for writer in writers:
            writer.begin(range(n))
        for writer in writers:
            writer.finish()
        assert observer.compare().pages == n
        assert sum(pages for _, pages in observer.vcpu_pages()) == n
    for writer in writers:
        writer.end()


def test_other_threads_count_for_the_total_only():
    memory = anonymous(513)
    vcpu, other = Writer(memory), Writer(memory)
    with tracking(DirtyRing([buffer_block(memory)], {0: vcpu.tid})) as observer:
        vcpu.write(range(5))
        other.write(range(3, 12))
        memory[100 * PAGE] = 1
        assert observer.compare().pages == 13
        assert observer.vcpu_pages() == ((0, 5),)
        assert observer.details()["n-dirty-pages-no-vcpu"] == 8
    vcpu.end()
    other.end()


def test_a_full_ring_stops_its_vcpu_until_it_is_harvested():
    memory = anonymous(513)
    stopped, free = Writer(memory), Writer(memory)
    vcpus = {0: stopped.tid, 1: free.tid}
    ring = DirtyRing([buffer_block(memory)], vcpus, capacity=8, harvest_full=False)
    with tracking(ring) as observer:
        stopped.begin(range(20))
        until(lambda: observer.n_waiting == 1)
        assert stopped.n_written == 8
        free.write(range(100, 108))  # the other vCPU has a ring of its own
        assert observer.compare().pages == 16
        until(lambda: observer.n_waiting == 1)
        assert stopped.n_written == 16
        assert observer.compare().pages >= 24
        stopped.finish()
        assert observer.compare().pages == 28
        assert observer.vcpu_pages() == ((0, 20), (1, 8))
        assert observer.details()["dirty-ring-full"] == [2, 0]
    stopped.end()
    free.end()


def test_a_full_ring_that_is_harvested_at_once_loses_nothing():
    memory = anonymous(1025)
    writer = Writer(memory)
    with tracking(DirtyRing([buffer_block(memory)], {0: writer.tid}, capacity=1)) as observer:
        writer.write(range(1000))
        assert observer.compare().pages == 1000
        assert observer.details()["dirty-ring-full"] == [999]
    writer.end()


def test_the_end_lets_a_stopped_vcpu_go_on():
    memory = anonymous(513)
    writer = Writer(memory)
    ring = DirtyRing([buffer_block(memory)], {0: writer.tid}, capacity=1, harvest_full=False)
    with tracking(ring) as observer:
        writer.begin(range(513))
        until(lambda: observer.n_waiting == 1)
    writer.finish()
    observer.close()
    assert memory[1234::PAGE] == b"\1" * 513
    writer.end()


def test_what_was_written_before_the_baseline_is_not_dirty():
    memory = anonymous(513)
    writer = Writer(memory)
    observer = DirtyRing([buffer_block(memory)], {0: writer.tid})
    observer.warm_up()
    writer.write([5, 6, 7, 512])
    observer.baseline()
    assert observer.compare().pages == 0
    writer.write([6, 511])
    assert observer.compare().pages == 2
    assert dirty(observer) == {6, 511}
    observer.close()
    writer.end()


def test_signals_do_not_disturb_the_handler():
    memory = anonymous(513)
    previous = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with tracking(DirtyRing([buffer_block(memory)], {})) as observer:
            handler = next(t for t in threading.enumerate() if t.name == "dirty-ring")
            for page in range(200):
                signal.pthread_kill(handler.ident, signal.SIGUSR1)
                write_page(memory, page)
            assert observer.compare().pages == 200
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_memory_that_is_unmapped_is_missed():
    memory = memfd(513)
    with tracking(DirtyRing([buffer_block(memory)], {})) as observer:
        write_page(memory, 1)
        memory.close()
        with pytest.raises(FaultError, match="has unmapped it, or a part of it"):
            observer.compare()


def test_a_descriptor_that_is_closed_under_the_handler_is_an_error():
    memory = memfd(513)
    with tracking(DirtyRing([buffer_block(memory)], {})) as observer:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, observer.userfaultfd)
        os.close(null)
        with pytest.raises(FaultError, match="its handler ended: Bad file descriptor"):
            observer.compare()
        write_page(memory, 1)  # nobody waits for an answer any more


def test_a_tracker_that_is_never_closed_does_not_hang_the_program():
    program = """
import mmap
from pysampler.memory.source import buffer_block
from pysampler.tracking.dirty_ring import DirtyRing
memory = mmap.mmap(-1, 1 << 20)
observer = DirtyRing([buffer_block(memory)], {}, capacity=1, harvest_full=False)
observer.warm_up()
observer.baseline()
memory[0] = 1
print("done")
"""
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (child.stdout, child.stderr, child.returncode) == ("done\n", "", 0)


def test_vcpus_are_found_by_the_names_of_their_threads():
    memory = anonymous(513)
    writers = {index: Writer(memory) for index in (0, 1, 10)}
    for index, writer in writers.items():
        with open(f"/proc/self/task/{writer.tid}/comm", "w") as comm:
            comm.write(f"CPU {index}/KVM")
    assert vcpu_threads(os.getpid()) == {index: w.tid for index, w in writers.items()}
    for writer in writers.values():
        writer.end()


def test_a_process_without_vcpus_is_refused():
    # Not this process: a thread that has been joined may still be listed for a moment.
    with (
        subject("") as process,
        pytest.raises(SourceError, match="has no thread named as a vCPU"),
    ):
        vcpu_threads(process.pid)


def private_huge(n_pages):
    return mmap.mmap(-1, n_pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)


@pytest.mark.parametrize("observe", [DirtyBitmap, lambda blocks: DirtyRing(blocks, {})])
@pytest.mark.parametrize("fill", [filled, lambda memory: memory], ids=["present", "untouched"])
@pytest.mark.parametrize("make", [lambda n: memfd(n, os.MFD_HUGETLB), private_huge])
def test_huge_pages_are_written_as_a_whole(huge_pages, make, fill, observe):
    del huge_pages
    memory = fill(make(4 * HUGE // PAGE))
    with tracking(observe([buffer_block(memory)])) as observer:
        write_page(memory, 600)
        assert observer.compare().pages == 512
        assert dirty(observer) == set(range(512, 1024))
        write_page(memory, 601)
        write_page(memory, 2047)
        assert observer.compare().pages == 1024
        assert observer.details()["blocks"][0]["tracking-page-size"] == HUGE
    write_page(memory, 0)


def test_vcpus_share_huge_pages(huge_pages):
    del huge_pages
    memory = memfd(4 * HUGE // PAGE, os.MFD_HUGETLB)
    writers = [Writer(memory), Writer(memory)]
    vcpus = {index: writer.tid for index, writer in enumerate(writers)}
    with tracking(DirtyRing([buffer_block(memory)], vcpus, capacity=1)) as observer:
        writers[0].write([0, 1, 512])
        writers[1].write([513, 1024])
        assert observer.compare().pages == 1536
        assert observer.vcpu_pages() == ((0, 1024), (1, 512))
    for writer in writers:
        writer.end()
    memory.close()


def test_huge_pages_written_before_the_baseline_are_not_dirty(huge_pages):
    del huge_pages
    memory = memfd(4 * HUGE // PAGE, os.MFD_HUGETLB)
    observer = DirtyRing([buffer_block(memory)], {})
    observer.warm_up()
    write_page(memory, 5)
    write_page(memory, 1500)
    observer.baseline()
    assert observer.compare().pages == 0
    write_page(memory, 6)
    observer.compare()
    assert dirty(observer) == set(range(512))
    observer.close()
    memory.close()


@pytest.mark.parametrize("observe", [DirtyBitmap, lambda blocks: DirtyRing(blocks, {})])
def test_blocks_of_both_page_sizes_are_counted_by_their_own(huge_pages, observe):
    del huge_pages
    small, huge = anonymous(513), memfd(2 * HUGE // PAGE, os.MFD_HUGETLB)
    blocks = [buffer_block(small, "small"), buffer_block(huge, "huge")]
    with tracking(observe(blocks)) as observer:
        write_page(small, 512)
        write_page(huge, 700)
        assert observer.compare().pages == 513
        sizes = [b["tracking-page-size"] for b in observer.details()["blocks"]]
        assert sizes == [PAGE, HUGE]
    huge.close()


@pytest.mark.parametrize("observe", [DirtyBitmap, lambda blocks: DirtyRing(blocks, {})])
@pytest.mark.parametrize("again", [0, 1])
def test_a_file_mapped_twice_is_protected_again_through_both(observe, again):
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 513 * PAGE)
    one, other = mmap.mmap(fd, 513 * PAGE), mmap.mmap(fd, 513 * PAGE)
    os.close(fd)
    observer = observe([buffer_block(one)])
    observer.warm_up()
    for memory in (one, other):
        write_page(memory, 7)
    observer.baseline()
    assert observer.compare().pages == 0
    write_page((one, other)[again], 7)
    assert observer.compare().pages == 1
    observer.close()


@pytest.mark.parametrize("capacity", [0, 65537])
def test_a_ring_of_no_or_too_many_entries_is_refused(capacity):
    block = buffer_block(mmap.mmap(-1, 1 << 20))
    with pytest.raises(UsageError, match="a ring has 1 to 65536 entries"):
        DirtyRing([block], {}, capacity=capacity)
