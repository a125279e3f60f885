import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writers import KINDS, PAGE, anonymous, filled, memfd, tracking, write_page

from pysampler import core
from pysampler.errors import FaultError, SourceError
from pysampler.memory.ramblock import BufferMemory, RAMBlock
from pysampler.memory.source import buffer_block
from pysampler.tracking.dirty_bitmap import DirtyBitmap

pytestmark = pytest.mark.usefixtures("needs_dirty_bitmap")


def dirty(observer, idstr="buffer"):
    return set(np.flatnonzero(observer.memory.dirty_pages(idstr)).tolist())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(pages=st.sets(st.integers(0, 512)))
def test_exactly_the_written_pages_are_dirty(kind, pages):
    memory = KINDS[kind](513)
    with tracking(DirtyBitmap([buffer_block(memory)])) as observer:
        for page in pages:
            write_page(memory, page)
        assert observer.compare().pages == len(pages)
        assert dirty(observer) == pages


def test_dirty_pages_are_the_union_since_the_baseline():
    memory = anonymous(513)
    with tracking(DirtyBitmap([buffer_block(memory)])) as observer:
        counts = []
        for pages in [(1, 2), (), (2, 3), (1,), (512,)]:
            for page in pages:
                write_page(memory, page)
            counts.append(observer.compare().pages)
        assert counts == [2, 2, 3, 3, 4]
        assert dirty(observer) == {1, 2, 3, 512}


def test_what_was_written_before_the_baseline_is_not_dirty():
    memory = anonymous(513)
    observer = DirtyBitmap([buffer_block(memory)])
    observer.warm_up()
    write_page(memory, 7)
    observer.baseline()
    write_page(memory, 8)
    observer.compare()
    assert dirty(observer) == {8}
    observer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_reading_makes_nothing_dirty(kind):
    memory = KINDS[kind](513)
    with tracking(DirtyBitmap([buffer_block(memory)])) as observer:
        assert sum(memory[::PAGE]) >= 0
        assert observer.compare().pages == 0


def test_writing_what_is_there_already_is_writing():
    memory = filled(anonymous(513))
    with tracking(DirtyBitmap([buffer_block(memory)])) as observer:
        memory[5 * PAGE] = 255
        assert observer.compare().pages == 1


def test_the_kernels_own_writes_count(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"x" * 3 * PAGE)
    memory = filled(anonymous(513))
    with tracking(DirtyBitmap([buffer_block(memory)])) as observer, file.open("rb") as stream:
        assert stream.readinto(memoryview(memory)[10 * PAGE : 13 * PAGE]) == 3 * PAGE
        observer.compare()
        assert dirty(observer) == {10, 11, 12}


def test_pages_given_back_are_dirty():
    memory = filled(anonymous(513))
    with tracking(DirtyBitmap([buffer_block(memory)])) as observer:
        memory.madvise(mmap.MADV_DONTNEED, 20 * PAGE, 2 * PAGE)
        observer.compare()
        assert dirty(observer) == {20, 21}


def test_zero_pages_are_counted_at_the_baseline():
    memory = anonymous(513)
    for at in range(0, 100 * PAGE, PAGE):
        memory[at] = memory[at + 8] = 1  # words that cancel out when they are xored
    observer = DirtyBitmap([buffer_block(memory)])
    observer.warm_up()
    assert observer.baseline().pages == 413
    observer.close()


def test_several_blocks_have_bitmaps_of_their_own():
    first, second = anonymous(33), memfd(513)
    blocks = [buffer_block(first, "first"), buffer_block(second, "second")]
    with tracking(DirtyBitmap(blocks)) as observer:
        write_page(first, 32)
        write_page(second, 0)
        write_page(second, 512)
        assert observer.compare().pages == 3
        assert (dirty(observer, "first"), dirty(observer, "second")) == ({32}, {0, 512})
        assert observer.n_total_pages == observer.n_sampled_pages == 546


def test_a_file_mapped_twice_has_one_bit_for_a_page():
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 513 * PAGE)
    one, other = mmap.mmap(fd, 513 * PAGE), mmap.mmap(fd, 300 * PAGE, offset=100 * PAGE)
    os.close(fd)
    with tracking(DirtyBitmap([buffer_block(one)])) as observer:
        write_page(one, 150)
        write_page(other, 50)
        write_page(other, 299)
        assert observer.compare().pages == 2
        assert dirty(observer) == {150, 399}


def test_what_two_busy_threads_wrote_between_two_looks_is_between_two_counts():
    n = 1 << 14
    memory = anonymous(n)
    order = np.random.default_rng(5).permutation(n)
    progress, stop = [0, 0], threading.Event()

    def write(thread):
        for page in order[thread::2].tolist():
            if stop.is_set():
                return
            write_page(memory, page)
            progress[thread] += 1

    observer = DirtyBitmap([buffer_block(memory)])
    observer.warm_up()
    observer.baseline()
    threads = [threading.Thread(target=write, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        low = [order[i::2][: progress[i]] for i in range(2)]
        observer.compare()
        # A page is counted just before its writer says so.
        high = [order[i::2][: progress[i] + 1] for i in range(2)]
        found = dirty(observer)
        assert set(np.concatenate(low).tolist()) <= found <= set(np.concatenate(high).tolist())
    stop.set()
    for thread in threads:
        thread.join()
    observer.compare()
    assert dirty(observer) == set(np.concatenate([order[i::2][: progress[i]] for i in range(2)]))
    observer.close()


def is_registered():
    """Return whether any memory of this process is under userfaultfd write-protection."""
    return " uw" in Path("/proc/self/smaps").read_text()


def test_memory_is_as_before_after_the_end():
    memory = memfd(513)
    with tracking(DirtyBitmap([buffer_block(memory)])) as observer:
        assert is_registered()
        write_page(memory, 3, value=7)
    assert not is_registered()
    observer.close()
    write_page(memory, 3, value=8)
    write_page(memory, 4, value=9)
    assert memory[3 * PAGE + 1234] == 8
    assert memory[4 * PAGE + 1234] == 9
    assert sum(memory[: 3 * PAGE]) == 0


def test_memory_that_is_tracked_cannot_be_tracked_again():
    memory = anonymous(513)
    block = buffer_block(memory)
    with tracking(DirtyBitmap([block])):
        with pytest.raises(SourceError, match="under another userfaultfd"):
            DirtyBitmap([block])
        write_page(memory, 1)
    with tracking(DirtyBitmap([block])) as observer:
        assert observer.compare().pages == 0


def test_a_heap_buffer_cannot_be_tracked():
    with pytest.raises(SourceError, match="does not begin and end with a page"):
        DirtyBitmap([RAMBlock("heap", 1 << 20, BufferMemory(memoryview(bytearray(1 << 20))[1:]))])


def test_memory_that_is_unmapped_is_missed():
    # A buffer that Python exports cannot be unmapped; another mapping of the same file can.
    memory = memfd(513)
    block = buffer_block(memory)
    with tracking(DirtyBitmap([block])) as observer:
        memory.close()
        with pytest.raises(FaultError, match="has unmapped it, or a part of it"):
            observer.compare()


def test_memory_that_is_mapped_anew_is_missed():
    memory = memfd(513)
    fd = os.memfd_create("other")
    os.ftruncate(fd, 513 * PAGE)
    with tracking(DirtyBitmap([buffer_block(memory)])) as observer:
        begin = observer.memory.ranges[0].address
        memory.close()
        other = mmap.mmap(fd, 513 * PAGE)
        if core.address_of(other) != begin:
            pytest.skip("the kernel chose another address")
        with pytest.raises(FaultError, match="can be tracked no more"):
            observer.compare()
    os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="without rights already")
def test_no_rights_are_needed():
    program = """
import ctypes, mmap, os
from pysampler.memory.source import buffer_block
from pysampler.tracking.dirty_bitmap import DirtyBitmap
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
PR_SET_DUMPABLE = 4
ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as of a process that never was root
memory = mmap.mmap(-1, 1 << 20)
observer = DirtyBitmap([buffer_block(memory)])
observer.warm_up()
observer.baseline()
memory[5 * 4096] = 1
with open("/dev/zero", "rb") as zeros:  # the kernel writes, which is not user mode
    zeros.readinto(memoryview(memory)[8 * 4096 : 9 * 4096])
observer.compare()
print(observer.memory.dirty_pages("buffer").nonzero()[0].tolist())
"""
    child = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (child.stdout, child.stderr) == ("[5, 8]\n", "")
