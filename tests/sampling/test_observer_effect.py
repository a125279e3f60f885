"""Sampling leaves the guest as it was."""

import contextlib
import ctypes
import os
import subprocess

import pytest
from huge_pages import huge_pages
from invented import PAGE, fill_page
from subject import LENGTH, pagemap, subject

import pysampler
from pysampler.memory.source import find_blocks, named_block, process_fd_block
from pysampler.sampling.plan import PROFILES, draw_plan

PRIVATE = """
memory = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)
for at in range(0, LENGTH, 3 * 4096): memory[at] = 1
"""


def sampled(blocks, **options):
    return pysampler.sample(blocks, calc_time="130ms", sample_pages=16384, **options)


def test_untouched_pages_of_another_process_stay_untouched():
    with subject(PRIVATE) as process:
        address = int(process("answer = address_of(memory)"))
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        before = pagemap(process.pid, address, LENGTH)
        vector = sampled([block])
        assert pagemap(process.pid, address, LENGTH) == before
        assert vector.details["blocks"][0]["access"] == "process_vm_readv"
        # Two thirds of the pages are zero: 5 standard deviations of 512 samples, 6e-7.
        assert abs(vector.n_zero_pages / vector.n_sampled_pages - 2 / 3) < 5 * 0.021


GROWING = """
memory = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)
memory[:] = b"m" * LENGTH
other = mmap.mmap(-1, 2 * LENGTH, flags=mmap.MAP_PRIVATE)
"""


@pytest.mark.parametrize("sample_pages", [128, 16384])
def test_pages_given_back_while_others_come_are_left_alone(sample_pages):
    with subject(GROWING) as process:
        address = int(process("answer = address_of(memory)"))
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        with pysampler.measure([block], calc_time="500ms", sample_pages=sample_pages) as sampler:
            for vector in sampler:
                if len(vector.periods) == 1:
                    process("other[:] = b'o' * len(other)")
                    process("memory.madvise(mmap.MADV_DONTNEED)")
        assert not any(entry & 0x80 for entry in pagemap(process.pid, address, LENGTH))
        assert vector.n_dirty_pages == (0, *[vector.n_sampled_pages] * (len(vector.periods) - 1))


TEMPLATE = """
import tempfile
file = tempfile.TemporaryFile()
file.write(os.urandom(LENGTH))
file.flush()
memory = mmap.mmap(file.fileno(), LENGTH, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
for at in range(0, LENGTH // 2, 4096): memory[at] = 1
"""


# A kernel that shares pages lets process_vm_readv() copy them. A fork shares like KSM does.
FORKED = """
for at in range(0, LENGTH, 4096): memory[at:at + 8] = os.urandom(8)
import signal
r, w = os.pipe()
if os.fork() == 0:
    ctypes.CDLL(None).prctl(1, 9)
    os.write(w, b"x")
    signal.pause()
os.read(r, 1)
for at in range(0, LENGTH // 2, 4096): memory[at] = 1 ^ memory[at]
"""
FORKED_KINDS = {
    "anonymous": "memory = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)\nmemory.madvise(15)",
    "file": """
fd = os.memfd_create("template")
os.ftruncate(fd, LENGTH)
memory = mmap.mmap(fd, LENGTH, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
""",
}


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("kind", FORKED_KINDS)
def test_pages_that_are_shared_copy_on_write_stay_shared(kind, threads):
    with subject(FORKED_KINDS[kind] + FORKED) as process:
        address = int(process("answer = address_of(memory)"))
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        before = pagemap(process.pid, address, LENGTH)
        exclusive = [entry & 1 for entry in before]  # bit 56
        assert sum(exclusive) == len(exclusive) // 2
        with pysampler.measure(
            [block], calc_time="500ms", sample_pages=16384, threads=threads
        ) as sampler:
            for vector in sampler:
                assert pagemap(process.pid, address, LENGTH) == before
                if len(vector.periods) == 1:
                    process(
                        "for at in range(LENGTH // 4, LENGTH, 4096): memory[at] = 2 ^ memory[at]"
                    )
                    before = pagemap(process.pid, address, LENGTH)
    assert vector.details["blocks"][0]["access"] == "process_vm_readv"
    # Three quarters of the samples are written: 6 standard deviations, 2e-9.
    n = vector.n_sampled_pages
    assert abs(vector.n_dirty_pages[-1] - n * 3 / 4) < 6 * (n * 3 / 16) ** 0.5
    assert vector.n_dirty_pages[0] == 0


def test_what_a_process_has_not_touched_of_a_file_is_no_zero_page():
    with subject(TEMPLATE) as process:
        address = int(process("answer = address_of(memory)"))
        before = pagemap(process.pid, address, LENGTH)
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        with pysampler.measure([block], calc_time="500ms", sample_pages=16384) as sampler:
            for vector in sampler:
                if len(vector.periods) == 1:
                    assert pagemap(process.pid, address, LENGTH) == before
                    process("answer = sum(memory[LENGTH // 2::4096])")
        assert vector.n_zero_pages == 0
        assert vector.n_dirty_pages == (0,) * len(vector.periods)
        assert vector.details["baseline"]["unreadable"] == 0
        assert vector.details["unreadable"] == [0] * len(vector.periods)


def test_untouched_pages_of_ones_own_buffer_stay_untouched():
    import mmap

    with mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE) as memory:
        block = pysampler.buffer_block(memory)
        address = pysampler.core.address_of(memory)
        before = pagemap(os.getpid(), address, LENGTH)
        vector = sampled([block])
        assert pagemap(os.getpid(), address, LENGTH) == before
        assert vector.n_zero_pages == vector.n_sampled_pages
        del block


MEMFD = """
fd = os.memfd_create("memory-backend-memfd")
os.ftruncate(fd, LENGTH)
memory = mmap.mmap(fd, LENGTH)
for at in range(0, LENGTH // 2, 7 * 4096): memory[at] = 1
answer = fd
"""


@pytest.mark.parametrize("sample_pages", [128, 16384])
@pytest.mark.parametrize("by_fd", [True, False])
def test_holes_of_another_processs_memfd_stay_holes(by_fd, sample_pages):
    with subject(MEMFD) as process:
        fd = int(process("answer = fd"))
        blocks = [process_fd_block(process.pid, fd)] if by_fd else find_blocks(process.pid)
        before = os.stat(f"/proc/{process.pid}/fd/{fd}").st_blocks
        vector = pysampler.sample(blocks, calc_time="130ms", sample_pages=sample_pages, seed=5)
        assert os.stat(f"/proc/{process.pid}/fd/{fd}").st_blocks == before
        assert vector.details["blocks"][0]["access"] == "mapped"
        plan = draw_plan([LENGTH], profile=PROFILES["qemu"], sample_pages=sample_pages, seed=5)
        written = (plan.vfns[0] % 7 == 0) & (plan.vfns[0] < LENGTH // 2 // PAGE)
        assert vector.n_zero_pages == int((~written).sum())


def test_holes_of_a_python_mmap_stay_holes(memfd):
    fd, memory = memfd(LENGTH)
    memory[:PAGE] = fill_page(1)
    before = os.fstat(fd).st_blocks
    sampled(memory)
    assert os.fstat(fd).st_blocks == before


def test_a_hole_is_not_hidden_by_space_beyond_the_end(memfd):
    fd, memory = memfd(LENGTH)
    memory[: LENGTH // 2] = b"x" * (LENGTH // 2)
    keep_size = 1  # FALLOC_FL_KEEP_SIZE
    reserve = ctypes.CDLL(None).fallocate
    assert reserve(fd, keep_size, ctypes.c_int64(LENGTH), ctypes.c_int64(LENGTH)) == 0
    before = os.fstat(fd).st_blocks
    vector = sampled(memory)
    assert os.fstat(fd).st_blocks == before
    assert 0 < vector.n_zero_pages < vector.n_sampled_pages


def test_the_time_of_access_of_a_file_stays(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(b"x" * LENGTH)
    os.utime(path, (1, 2))
    sampled([pysampler.file_block(path)])
    assert path.stat().st_atime == 1


HUGE = """
fd = os.memfd_create("memory-backend-memfd", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
os.ftruncate(fd, LENGTH)
memory = mmap.mmap(fd, LENGTH)
memory[:4 << 20] = b"x" * (4 << 20)
"""


def free_huge_pages():
    with open("/proc/meminfo") as meminfo:
        lines = dict(line.split(":", 1) for line in meminfo)
    return int(lines["HugePages_Free"]), int(lines["HugePages_Rsvd"])


def test_holes_of_hugetlbfs_are_neither_filled_nor_reserved():
    with huge_pages(16), subject(HUGE) as process:
        blocks = find_blocks(process.pid)
        before = free_huge_pages()
        vector = sampled(blocks)
        assert free_huge_pages() == before
        assert blocks[0].page_size == 2 << 20
        assert vector.details["blocks"][0]["access"] == "pread"
        assert 0 < vector.n_zero_pages < vector.n_sampled_pages


def test_hugetlbfs_without_holes_is_mapped():
    with huge_pages(16), subject(HUGE) as process:
        process("memory[4 << 20:] = b'y' * (LENGTH - (4 << 20))")
        vector = sampled(find_blocks(process.pid))
        assert vector.details["blocks"][0]["access"] == "mapped"
        assert vector.n_zero_pages == 0


@contextlib.contextmanager
def swap_space(folder):
    """Swap to a file for a test, which needs root and a file system that can."""
    path = folder / "swap"
    path.write_bytes(bytes(96 << 20))
    path.chmod(0o600)
    for command in (["mkswap", path], ["swapon", path]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no swap can be had: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", path], check=True)


# MADV_PAGEOUT; the content must not be zero, or zswap and the kernel drop it.
PAGE_OUT = """
assert ctypes.CDLL(None).madvise(ctypes.c_void_p(address_of(memory)), ctypes.c_size_t(LENGTH // 2), 21) == 0
"""


def swapped_kib():
    with open("/proc/meminfo") as meminfo:
        lines = dict(line.split(":", 1) for line in meminfo)
    return int(lines["SwapTotal"].split()[0]) - int(lines["SwapFree"].split()[0])


@pytest.mark.parametrize("kind", ["private", "memfd"])
def test_swapped_pages_stay_swapped_and_are_reported(tmp_path, kind):
    make = PRIVATE if kind == "private" else MEMFD
    with swap_space(tmp_path), subject(make) as process:
        process("memory[:] = os.urandom(LENGTH)")
        address = int(process("answer = address_of(memory)"))
        process(PAGE_OUT.strip())
        if kind == "private" and not any(e & 0x40 for e in pagemap(process.pid, address, LENGTH)):
            pytest.skip("the kernel swapped nothing out")
        before = swapped_kib()
        assert before > 0
        vector = sampled(find_blocks(process.pid))
        # The rest of the machine may swap out meanwhile; what must not be is that less is out.
        assert swapped_kib() >= before
        baseline = vector.details["baseline"]["unreadable"]
        assert baseline > vector.n_sampled_pages // 4
        assert vector.details["unreadable"] == [baseline] * len(vector.periods)
        assert vector.n_dirty_pages == (0,) * len(vector.periods)
