"""What readers share, notice and let go."""

import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
from subject import LENGTH, subject

import pysampler
from pysampler import core
from pysampler.cli.streams import one_line
from pysampler.errors import SourceError
from pysampler.memory.ramblock import ProcessMemory, RAMBlock
from pysampler.memory.reader import address_space, open_reader
from pysampler.memory.source import find_blocks, named_block
from pysampler.vector.interrupted import MeasurementInterruptedError

# ---- many blocks ----

MANY_PRIVATE = """
n = 1000
memory = mmap.mmap(-1, n << 20, flags=mmap.MAP_PRIVATE)
for at in range(0, len(memory), 1 << 14): memory[at] = 1
libc = ctypes.CDLL(None)
for i in range(n): libc.mprotect(ctypes.c_void_p(address_of(memory) + (i << 20) + (1 << 19)), ctypes.c_size_t(4096), 0)
"""
MANY_MEMFDS = """
memories = []
for i in range(n):
    fd = os.memfd_create("memory-backend-memfd")
    os.ftruncate(fd, 1 << 20)
    memories.append(mmap.mmap(fd, 1 << 20))
    memories[-1][:] = bytes([1 + i % 255]) * (1 << 20)
"""


def private_blocks(process):
    address = int(process("answer = address_of(memory)"))
    return [
        RAMBlock(f"ram{i}", 1 << 19, ProcessMemory(process.pid, address + (i << 20), True))
        for i in range(1000)
    ]


@pytest.fixture
def few_descriptors():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_descriptors")
def test_a_thousand_blocks_of_a_process_take_one_look_a_pass(monkeypatch):
    looks = []

    def read_maps(pid):
        looks.append(pid)
        return real(pid)

    real = address_space.read_maps
    monkeypatch.setattr(address_space, "read_maps", read_maps)
    with subject(MANY_PRIVATE) as process:
        blocks = private_blocks(process)
        before = set(os.listdir("/proc/self/fd"))
        with pysampler.measure(blocks, calc_time="500ms", sample_pages=16384) as sampler:
            assert len(set(os.listdir("/proc/self/fd")) - before) <= 4
            *_, vector = sampler
    assert vector.details["unreadable"] == [0] * len(vector.periods)
    # When it was opened, and at the end of each pass: to warm up, the baseline, the others.
    assert len(looks) == 3 + len(vector.periods)


def test_unreadable_samples_take_no_look_at_the_mappings(monkeypatch):
    closed = """
memory = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)
memory[:] = b"x" * LENGTH
ctypes.CDLL(None).mprotect(ctypes.c_void_p(address_of(memory)), ctypes.c_size_t(LENGTH // 2), 0)
"""
    with subject(closed) as process:
        address = int(process("answer = address_of(memory)"))
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        looks, real = [], address_space.read_maps
        monkeypatch.setattr(address_space, "read_maps", lambda pid: looks.append(pid) or real(pid))
        vector = pysampler.sample([block], calc_time="130ms", sample_pages=16384)
    assert vector.details["unreadable"][0] > vector.n_sampled_pages // 4
    assert len(looks) == 3 + len(vector.periods)


def test_blocks_with_files_of_their_own_take_one_descriptor_each():
    with subject("n = 100\n" + MANY_MEMFDS) as process:
        blocks = find_blocks(process.pid)
        assert len(blocks) == 100
        before = set(os.listdir("/proc/self/fd"))
        with pysampler.measure(blocks, calc_time="130ms", sample_pages=16384):
            assert len(set(os.listdir("/proc/self/fd")) - before) <= 100 + 2
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("few_descriptors")
def test_too_few_descriptors_are_told_with_the_cure():
    own = resource.prlimit(0, resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, own[1]))
    with subject("n = 300\n" + MANY_MEMFDS) as process:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)
        before = set(os.listdir("/proc/self/fd"))
        with pytest.raises(
            SourceError, match=r"RAMBlock .* 256 files .* raise `ulimit -n`$"
        ) as caught:
            pysampler.sample(find_blocks(process.pid), calc_time="130ms", sample_pages=16384)
        assert one_line(caught.value) == str(caught.value)  # the cure is said once
        assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("few_descriptors")
def test_parts_of_one_file_share_its_descriptor(tmp_path):
    setup = f"fd = os.open({str(tmp_path / 'ram')!r}, os.O_RDWR | os.O_CREAT)\nos.ftruncate(fd, 1 << 30)\nmemory = mmap.mmap(fd, 1 << 30)"
    with subject(setup) as process:
        address = int(process("answer = address_of(memory)"))
        blocks = [
            named_block(process.pid, f"ram{i}={address + (i << 20):#x}:1M") for i in range(1000)
        ]
        pysampler.sample(blocks, calc_time="130ms", sample_pages=16384)


def test_without_address_space_a_file_is_read_without_a_mapping(tmp_path):
    path = tmp_path / "ram"
    with open(path, "wb") as file:
        file.truncate(8 << 30)
    done = subprocess.run(
        [
            *("bash", "-c", 'ulimit -v 4194304; exec "$@"', "bash"),
            *(sys.executable, "-m", "pysampler", "sample", "--file", path),
            *("--calc-time", "130ms", "--quiet"),
        ],
        capture_output=True,
        text=True,
        check=False,
        # A sanitized build takes terabytes of address space: this is about the ordinary one.
        env={n: v for n, v in os.environ.items() if n not in {"LD_PRELOAD", "PYTHONPATH"}},
    )
    assert done.returncode == 0, done.stderr
    vector = pysampler.Measurement.from_json(done.stdout)
    assert vector.details["blocks"][0]["access"] == "pread"
    assert vector.n_zero_pages == vector.n_sampled_pages


# ---- what was replaced ----

REPLACEABLE = """
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
def replace(flags, fd, offset):
    where = ctypes.c_void_p(address_of(memory))
    assert libc.mmap(where, ctypes.c_size_t(LENGTH), 3, flags | 0x10, fd, ctypes.c_long(offset)) == address_of(memory)
one, two = os.memfd_create("one"), os.memfd_create("two")
for fd in (one, two): os.ftruncate(fd, 2 * LENGTH)
"""
SHARED, PRIVATE, ANONYMOUS = 1, 2, 0x20


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{SHARED}, one, 0", f"{SHARED}, two, 0"),
        (f"{SHARED}, one, 0", f"{SHARED}, one, 4096"),
        (f"{SHARED}, one, 0", f"{PRIVATE | ANONYMOUS}, -1, 0"),
        (f"{PRIVATE}, one, 0", f"{PRIVATE}, two, 0"),
        (f"{PRIVATE}, one, 0", f"{PRIVATE}, one, LENGTH"),
        (f"{PRIVATE}, one, 0", f"{SHARED}, one, 0"),
        (f"{PRIVATE | ANONYMOUS}, -1, 0", f"{PRIVATE}, one, 0"),
        (f"{PRIVATE | ANONYMOUS}, -1, 0", f"{SHARED | ANONYMOUS}, -1, 0"),
    ],
)
def test_memory_replaced_at_the_same_address_is_told(before, after):
    setup = f"{REPLACEABLE}memory = mmap.mmap(-1, LENGTH)\nreplace({before})"
    with subject(setup) as process:
        address = int(process("answer = address_of(memory)"))
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        sampler = pysampler.measure([block], calc_time="500ms", sample_pages=16384)
        with pytest.raises(MeasurementInterruptedError, match="replaced by another mapping"):
            for vector in sampler:
                if len(vector.periods) == 1:
                    process(f"replace({after})")


def test_a_mapping_that_is_split_is_the_same():
    with subject("memory = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)") as process:
        address = int(process("answer = address_of(memory)"))
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        with pysampler.measure([block], calc_time="500ms", sample_pages=16384) as sampler:
            for vector in sampler:
                if len(vector.periods) == 1:
                    process("memory.madvise(mmap.MADV_DONTFORK, 4096, 8192)")
        assert len(vector.periods) > 1


def test_a_process_that_executes_another_program_has_ended():
    with subject("memory = mmap.mmap(-1, LENGTH)\nmemory[:] = b'x' * LENGTH") as process:
        address = int(process("answer = address_of(memory)"))
        block = named_block(process.pid, f"ram={address:#x}:{LENGTH}")
        sampler = pysampler.measure([block], calc_time="2s", sample_pages=16384)
        with pytest.raises(MeasurementInterruptedError, match="the process has ended"):
            for vector in sampler:
                if len(vector.periods) == 1:
                    process.process.stdin.write("os.execvp('sleep', ['sleep', '60'])\n")
                    process.process.stdin.flush()


# ---- what is let go ----


@pytest.mark.parametrize("kind", ["private", "memfd", "file", "buffer"])
def test_a_dropped_sampler_closes_what_it_opened(kind, tmp_path):
    with subject("n = 3\n" + MANY_MEMFDS) as process, mmap.mmap(-1, LENGTH) as own:
        private = int(
            process("m = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE); answer = address_of(m)")
        )
        (tmp_path / "ram").write_bytes(b"x" * LENGTH)
        blocks = {
            "private": lambda: [named_block(process.pid, f"ram={private:#x}:{LENGTH}")],
            "memfd": lambda: find_blocks(process.pid),
            "file": lambda: [pysampler.file_block(tmp_path / "ram")],
            "buffer": lambda: [pysampler.buffer_block(own)],
        }[kind]()
        gc.collect()
        before = set(os.listdir("/proc/self/fd"))
        sampler = pysampler.measure(blocks, calc_time="500ms", sample_pages=16384)
        next(iter(sampler))
        reader = open_reader(blocks[0], 4096)
        assert set(os.listdir("/proc/self/fd")) != before
        del sampler, reader
        gc.collect()
        assert set(os.listdir("/proc/self/fd")) == before
        del blocks


def test_a_mapping_of_a_file_ends_with_its_last_view(memfd):
    fd, memory = memfd(LENGTH)
    memory[:] = b"m" * LENGTH

    def mapped():
        with open("/proc/self/maps") as maps:
            return sum("memfd:ram" in line for line in maps)

    before = mapped()
    view = core.map_file(fd, 0, LENGTH)[4096:8192]
    assert mapped() == before + 1
    assert bytes(view) == b"m" * 4096
    del view
    assert mapped() == before


# ---- fork ----

FORKS = """
import os, threading, warnings
import numpy as np
import pysampler
from pysampler import core
warnings.simplefilter("ignore")
memory = bytearray(os.urandom(1 << 20))
stop = threading.Event()

def passes():
    hasher, hashes, vfns = core.Hasher(core.Hash.TOUCH), np.zeros(1, np.uint64), np.zeros(1, np.uint64)
    while not stop.is_set():
        core.hash_mapped(hasher, memory, 4096, vfns, hashes)

def measurements():
    while not stop.is_set():
        pysampler.sample(memory, calc_time="50ms", sample_pages=16384, threads=2)

threads = [threading.Thread(target=work) for work in (passes, passes, measurements)]
for thread in threads: thread.start()
for _ in range(200):
    pid = os.fork()
    if pid == 0:
        hashes = np.zeros(1, np.uint64)
        core.hash_mapped(core.Hasher(core.Hash.XXH3), memory, 4096, np.zeros(1, np.uint64), hashes)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        pysampler.sample(memory, calc_time="50ms", sample_pages=16384, threads=2)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
print("survived")
"""


def test_a_child_forked_in_the_middle_of_a_pass_measures():
    with subprocess.Popen(
        [sys.executable, "-c", FORKS],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        killer = threading.Timer(60, os.killpg, (process.pid, signal.SIGKILL))
        killer.start()
        out = process.stdout.read()
        killer.cancel()
    assert out == "survived\n"
