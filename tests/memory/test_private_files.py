"""Private mappings of files: what a process has not written is in the file."""

import contextlib
import os
from dataclasses import replace

import numpy as np
import pytest
from huge_pages import huge_pages
from subject import LENGTH, pagemap, subject

import pysampler
from pysampler.memory.reader import open_reader
from pysampler.memory.source import named_block
from pysampler.sampling.plan import PROFILES, draw_plan

KINDS = {
    "file": "import tempfile; fd = os.open(tempfile.mkdtemp(dir=FOLDER) + '/ram', os.O_RDWR | os.O_CREAT)",
    "memfd": "fd = os.memfd_create('template')",
    "shm": "fd = os.open('/dev/shm/', os.O_RDWR | os.O_TMPFILE, 0o600)",
}
MAPPED = """
PAGES = LENGTH // 4096
os.ftruncate(fd, LENGTH + 8192)
for at in range(0, LENGTH // 2, 4096): os.pwrite(fd, os.urandom(4096), 8192 + at)
memory = mmap.mmap(fd, LENGTH, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=8192)
import random
"""


@contextlib.contextmanager
def private_file(tmp_path, kind="file", after=""):
    setup = f"FOLDER = {str(tmp_path)!r}\n{KINDS[kind]}\n{MAPPED}\n{after}"
    with subject(setup) as process:
        address = int(process("answer = address_of(memory)"))
        yield process, address, named_block(process.pid, f"ram={address:#x}:{LENGTH}")


def sampled_vfns(seed):
    return draw_plan([LENGTH], profile=PROFILES["qemu"], sample_pages=16384, seed=seed).vfns[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [3, 4])
def test_writes_are_counted_exactly_on_what_was_untouched(tmp_path, kind, seed):
    pages = np.random.default_rng(seed).integers(0, LENGTH // 4096, 3000)
    with private_file(tmp_path, kind) as (process, address, block):
        before = pagemap(process.pid, address, LENGTH)
        with pysampler.measure(
            [block], calc_time="500ms", sample_pages=16384, seed=seed
        ) as sampler:
            for vector in sampler:
                if len(vector.periods) == 1:
                    assert pagemap(process.pid, address, LENGTH) == before
                    process(f"random.seed({seed})")
                    process(
                        f"for at in {pages.tolist()}: memory[at * 4096] = 1 + at % 255 ^ memory[at * 4096]"
                    )
    vfns = sampled_vfns(seed)
    truth = int(np.isin(vfns, pages).sum())
    # What is drawn twice, or written an even number of times, is none of the test's concern.
    written, times = np.unique(pages, return_counts=True)
    surely = written[times == 1]
    assert int(np.isin(vfns, surely).sum()) <= vector.n_dirty_pages[-1] <= truth
    assert vector.n_dirty_pages[0] == 0
    assert vector.details["baseline"]["unreadable"] == max(vector.details["unreadable"]) == 0
    # Half of the file is a hole.
    assert vector.n_zero_pages == int((vfns >= LENGTH // 2 // 4096).sum())


def test_a_page_that_is_given_back_has_the_files_content_again(tmp_path):
    with private_file(tmp_path, after="memory[:] = b'm' * LENGTH") as (process, _, block):
        with pysampler.measure([block], calc_time="500ms", sample_pages=16384) as sampler:
            for vector in sampler:
                if len(vector.periods) == 1:
                    process("memory.madvise(mmap.MADV_DONTNEED)")
        assert vector.n_dirty_pages == (0, *[vector.n_sampled_pages] * (len(vector.periods) - 1))


def test_holes_of_a_template_stay_holes(tmp_path):
    with private_file(tmp_path, "shm") as (process, _, block):
        path = f"/proc/{process.pid}/fd/{process('answer = fd')}"
        before = os.stat(path).st_blocks
        pysampler.sample([block], calc_time="130ms", sample_pages=16384)
        assert os.stat(path).st_blocks == before


def test_pages_past_the_end_of_the_file_are_closed(tmp_path):
    with private_file(tmp_path, after="os.ftruncate(fd, 8192 + LENGTH // 4)") as (_, _, block):
        vector = pysampler.sample([block], calc_time="130ms", sample_pages=16384, seed=8)
    lost = int((sampled_vfns(8) >= LENGTH // 4 // 4096).sum())
    assert vector.details["baseline"]["unreadable"] == lost
    assert vector.details["unreadable"] == [lost] * len(vector.periods)
    assert vector.n_zero_pages == 0


def test_compression_reads_untouched_pages_from_the_file(tmp_path):
    with private_file(tmp_path, after="os.pwrite(fd, b'c' * LENGTH, 8192)") as (
        process,
        address,
        block,
    ):
        before = pagemap(process.pid, address, LENGTH)
        reader = open_reader(block, 4096)
        assert reader.copy_page(17) == b"c" * 4096
        reader.close()
        assert pagemap(process.pid, address, LENGTH) == before


def test_a_file_that_may_not_be_opened_leaves_its_pages_unseen(tmp_path):
    with private_file(tmp_path, after="for at in range(0, LENGTH, 8192): memory[at] = 1") as (
        _,
        _,
        block,
    ):
        unseen = replace(block, memory=replace(block.memory, file=None))
        vector = pysampler.sample([unseen], calc_time="130ms", sample_pages=16384, seed=9)
    assert vector.details["baseline"]["unreadable"] == int((sampled_vfns(9) % 2 == 1).sum())


HUGE_PRIVATE = {
    "anonymous": "memory = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)",
    "memfd": """
fd = os.memfd_create("hugeram", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
os.ftruncate(fd, LENGTH)
memory = mmap.mmap(fd, LENGTH, flags=mmap.MAP_PRIVATE)
""",
}


def not_permitted(path):
    raise PermissionError(path)


def free_huge_pages():
    with open("/proc/meminfo") as meminfo:
        lines = dict(line.split(":", 1) for line in meminfo)
    return int(lines["HugePages_Free"])


@pytest.mark.parametrize("by", ["map_files", "smaps"])
@pytest.mark.parametrize("kind", HUGE_PRIVATE)
def test_private_huge_pages_are_huge_and_missing_ones_stay_missing(kind, by, monkeypatch):
    touch = "\nmemory[:6 << 20] = b'h' * (6 << 20)"
    with huge_pages(24), subject(HUGE_PRIVATE[kind] + touch) as process:
        address = int(process("answer = address_of(memory)"))
        if by == "smaps":  # as without the right to look into map_files
            monkeypatch.setattr(os, "statvfs", not_permitted)
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        free = free_huge_pages()
        vector = pysampler.sample([block], calc_time="130ms", sample_pages=16384, seed=2)
        assert free_huge_pages() == free
    assert block.page_size == 2 << 20
    assert vector.details["blocks"][0]["page-size"] == 2 << 20
    assert vector.n_zero_pages == int((sampled_vfns(2) >= (6 << 20) // 4096).sum())
    assert vector.details["baseline"]["unreadable"] == 0
