import mmap
import os
import tempfile
import threading

import pytest
from writers import PAGE, anonymous, memfd, write_page

import pysampler
from pysampler import Measurement, Mode, tracking
from pysampler.errors import MissingFeatureError, SourceError, UsageError
from pysampler.measuring import exact_observer
from pysampler.memory.ramblock import BufferMemory, RAMBlock
from pysampler.memory.source import buffer_block, file_block
from pysampler.sampling.sampler import Sampler
from pysampler.tracking import dirty_bitmap, userfaultfd
from pysampler.tracking.full_comparison import FullComparison
from pysampler.tracking.probe import probe
from pysampler.vector.remarks import remarks


class ScriptedClock:
    """Each wait passes at once and runs the next scripted step."""

    def __init__(self, steps):
        self._now_ns = 0
        self._steps = iter(steps)

    def now_ns(self):
        return self._now_ns

    def wait_until(self, deadline_ns):
        self._now_ns = max(self._now_ns, deadline_ns)
        next(self._steps)()


def measured(observer, calc_time_ms, steps):
    with Sampler(observer, calc_time_ms, "millisecond", ScriptedClock(steps)) as sampler:
        return list(sampler)


def writing(memory, *pages):
    return lambda: [write_page(memory, page, value=9) for page in pages]


def observers(block):
    return {
        "userfaultfd-wp-async": lambda: exact_observer([block], Mode.DIRTY_BITMAP),
        "userfaultfd-wp-messages": lambda: exact_observer([block], Mode.DIRTY_RING, vcpus={0: 1}),
        "full-comparison": lambda: FullComparison([block]),
    }


@pytest.mark.usefixtures("needs_dirty_bitmap", "needs_dirty_ring")
@pytest.mark.parametrize("name", observers(None))
def test_an_exact_measurement_is_a_vector_of_all_pages(name):
    memory = anonymous(513)
    write_page(memory, 3)
    steps = [writing(memory, 1, 2), writing(memory), writing(memory, 2, 400), writing(memory, 512)]
    vectors = measured(
        observers(buffer_block(memory))[name](), 1000, [*steps[:3], steps[1], steps[3]]
    )
    last = vectors[-1]
    assert last.periods == (125, 250, 375, 500, 1000)
    assert last.n_dirty_pages == (2, 2, 3, 3, 4)
    assert (last.n_sampled_pages, last.n_total_pages, last.sample_pages) == (513, 513, 0)
    assert last.n_zero_pages == 512
    assert last.details["tracking"] == name
    assert last.curve().dirty_pages.tolist() == [2, 2, 3, 3, 4]
    assert Measurement.from_json(last.to_json()) == last


@pytest.mark.usefixtures("needs_dirty_ring")
def test_dirty_ring_gives_each_vcpus_rate():
    memory = anonymous(2049)
    vcpus = {0: threading.get_native_id(), 1: 1}
    observer = exact_observer([buffer_block(memory)], Mode.DIRTY_RING, vcpus=vcpus)
    (vector,) = measured(observer, 125, [writing(memory, *range(1023))])
    # 1023 pages are 3 whole MiB; in 125 ms, 24 MiB/s
    assert vector.vcpu_dirty_rate == ((0, 24), (1, 0))
    assert vector.dirty_rate == 24
    assert vector.mode is Mode.DIRTY_RING


@pytest.mark.usefixtures("needs_dirty_bitmap")
def test_a_buffer_of_the_heap_is_compared_instead():
    buffer = memoryview(bytearray((1 << 20) + 1))[1:]
    block = RAMBlock("heap", 1 << 20, BufferMemory(buffer))

    def write():
        buffer[5 * PAGE] = 1

    (vector,) = measured(exact_observer([block], Mode.DIRTY_BITMAP), 125, [write])
    assert vector.n_dirty_pages == (1,)
    assert vector.details["tracking"] == "full-comparison"
    assert "does not begin and end with a page" in vector.details["tracking-reason"]


def test_a_file_that_nobody_maps_is_compared_instead(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(b"x" * (1 << 20))

    def write():
        with path.open("r+b") as file:
            file.seek(7 * PAGE)
            file.write(b"y")

    (vector,) = measured(exact_observer([file_block(str(path))], Mode.DIRTY_BITMAP), 125, [write])
    assert vector.n_dirty_pages == (1,)
    assert vector.details["tracking"] == "full-comparison"


@pytest.mark.usefixtures("needs_dirty_bitmap", "needs_dirty_ring")
def test_a_mapped_file_on_disk_has_a_bitmap_but_no_ring():
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(__file__)) as file:
        file.write(b"x" * (1 << 20))
        file.flush()
        memory = mmap.mmap(file.fileno(), 0)
        block = buffer_block(memory)
        with pytest.raises(SourceError, match="the kernel does that for anonymous memory"):
            exact_observer([block], Mode.DIRTY_RING, vcpus={})

        def write():
            write_page(memory, 9)
            memory.flush()  # writing back must not make it clean

        (vector,) = measured(exact_observer([block], Mode.DIRTY_BITMAP), 125, [write])
        memory.close()
    assert vector.n_dirty_pages == (1,)
    assert vector.details["tracking"] == "userfaultfd-wp-async"


@pytest.mark.parametrize("where", ["disk", "memfd"])
@pytest.mark.parametrize("mode", [Mode.DIRTY_BITMAP, Mode.DIRTY_RING])
def test_a_file_that_is_mapped_privately_is_not_watched_in_its_place(tmp_path, where, mode):
    path = tmp_path / "memory"
    fd = os.open(path, os.O_RDWR | os.O_CREAT) if where == "disk" else os.memfd_create("memory")
    os.write(fd, b"x" * (1 << 20))
    memory = mmap.mmap(fd, 1 << 20, flags=mmap.MAP_PRIVATE)
    block = file_block(f"/proc/self/fd/{fd}")
    with pytest.raises(SourceError, match="mapped privately"):
        exact_observer([block], mode, vcpus={})
    memory.close()
    os.close(fd)


@pytest.mark.usefixtures("needs_dirty_bitmap")
@pytest.mark.parametrize("touched", [False, True])
def test_private_pages_of_a_file_are_tracked_exactly(tmp_path, touched):
    path = tmp_path / "memory"
    path.write_bytes(os.urandom(513 * PAGE))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    if touched:
        sum(memory[::PAGE])
        write_page(memory, 3)
    observer = exact_observer([buffer_block(memory)], Mode.DIRTY_BITMAP)
    (vector,) = measured(observer, 125, [writing(memory, 3, 5, 512)])
    assert vector.n_dirty_pages == (3,)
    assert vector.details["tracking"] == "userfaultfd-wp-async"
    assert vector.n_zero_pages == 0


def test_page_sampling_is_no_exact_mode():
    with pytest.raises(UsageError, match="page-sampling is not exact tracking"):
        exact_observer([buffer_block(anonymous(513))], Mode.PAGE_SAMPLING)


@pytest.mark.parametrize(
    ("errno", "message"),
    [
        (1, "userfaultfd is not permitted: be root, have CAP_SYS_PTRACE, or"),
        (38, "the kernel needs CONFIG_USERFAULTFD"),
        (95, "needs Linux 6.4"),
        (24, "userfaultfd: Too many open files"),
    ],
)
def test_a_missing_feature_is_named_with_its_cure(monkeypatch, errno, message):
    def fail(kind):
        del kind
        raise OSError(errno, os.strerror(errno))

    monkeypatch.setattr(userfaultfd.core, "uffd_open", fail)
    block = buffer_block(anonymous(513))
    with pytest.raises(MissingFeatureError, match=message):
        exact_observer([block], Mode.DIRTY_RING, vcpus={})
    assert isinstance(exact_observer([block], Mode.DIRTY_BITMAP), FullComparison)
    findings = {finding.name: finding for finding in probe()}
    assert not findings["PAGEMAP_SCAN"].works
    assert findings["userfaultfd write-protect, messages"].cure
    assert tracking.offer_userfaultfd() == []


def test_what_works_needs_no_cure():
    for finding in probe():
        assert finding.works == (not finding.cure)
        assert finding.name
        assert finding.detail


def test_dirty_bitmap_is_preferred_to_a_comparison(needs_dirty_bitmap):
    del needs_dirty_bitmap
    observer = exact_observer([buffer_block(anonymous(513))], Mode.DIRTY_BITMAP)
    assert isinstance(observer, dirty_bitmap.DirtyBitmap)
    observer.close()


@pytest.mark.usefixtures("needs_dirty_bitmap")
def test_a_python_buffer_is_tracked_in_one_line():
    memory = anonymous(513)
    (vector,) = pysampler.track(memory, calc_time="50ms")
    pysampler.track(memory, calc_time="50ms").close()  # the end of the first has given it back
    assert vector.n_dirty_pages == (0,)
    assert vector.details["tracking"] == "userfaultfd-wp-async"
    assert "interval" not in vector.details


def test_track_refuses_sampling():
    with pytest.raises(UsageError, match="mode must be dirty-bitmap or dirty-ring"):
        pysampler.track(anonymous(513), mode="page-sampling")


def test_a_full_comparison_is_remarked_upon():
    (vector,) = measured(
        FullComparison([buffer_block(anonymous(513))], reason="because"), 125, [int]
    )
    (remark,) = remarks(vector)
    assert remark.startswith("writes could not be tracked")
    assert remark.endswith("(because)")


def test_counting_by_huge_pages_is_remarked_upon(huge_pages, needs_dirty_bitmap):
    del huge_pages, needs_dirty_bitmap
    memory = memfd(1024, os.MFD_HUGETLB)
    (vector,) = measured(exact_observer([buffer_block(memory)], Mode.DIRTY_BITMAP), 125, [int])
    (remark,) = remarks(vector)
    assert remark.startswith("buffer: tracked by pages of 2 MiB")
    assert remark.endswith("one write counts 512 pages of 4 KiB")
    memory.close()
