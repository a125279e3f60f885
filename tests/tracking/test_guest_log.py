"""The log of `pysampler guest`, read by another process; and what is no such log."""

import fcntl
import gc
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

from pysampler import core
from pysampler.core import DirtyLogFile
from pysampler.measuring import exact_observer
from pysampler.memory.source import find_blocks
from pysampler.memory.source.file import file_memory_block
from pysampler.tracking.guest_log import LOG_NAME, GuestLog, NoLogError
from pysampler.tracking.probe import probe
from pysampler.vector.measurement import Mode

READER = """
import sys, time
from pysampler.core import LogMode
from pysampler.memory.source import find_blocks
from pysampler.tracking.guest_log import GuestLog
pid = int(sys.argv[1])
log = GuestLog(find_blocks(pid), pid)
log.start(LogMode.BITMAP_AND_RING)
while not log.file.n_full(0):
    time.sleep(0.001)
print("full", flush=True)
time.sleep(600)
"""


@contextmanager
def guest(*words):
    command = [sys.executable, "-m", "pysampler", "guest", "--memory=64M", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        ready = json.loads(process.stdout.readline())
        counters = np.memmap(
            f"/proc/{process.pid}/fd/{ready['counters']['fd']}", dtype=np.uint64, mode="r"
        )
        try:
            yield process.pid, counters
        finally:
            process.kill()


def test_a_reader_that_is_killed_leaves_no_vcpu_at_a_full_ring_and_no_log():
    with guest("--workload=sweep:wps=max") as (pid, counters):
        with subprocess.Popen(
            [sys.executable, "-c", READER, str(pid)], stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdout.readline() == "full\n"
            reader.send_signal(signal.SIGKILL)
        writes, end = counters[0], time.monotonic() + 30
        while counters[0] == writes:
            assert time.monotonic() < end
            time.sleep(0.01)
        # Another reader finds it free, and starts clean.
        observer = exact_observer(find_blocks(pid), Mode.DIRTY_RING, pid=pid)
        observer.warm_up()
        observer.baseline()
        observer.compare()
        observer.close()


@pytest.mark.usefixtures("huge_pages")
def test_huge_pages_are_logged_in_pages_of_4_kib():
    with guest("--huge", "--workload=sweep:ws=40K,wps=max") as (pid, counters):
        observer = exact_observer(find_blocks(pid), Mode.DIRTY_BITMAP, pid=pid)
        observer.warm_up()
        observer.baseline()
        writes = counters[0]
        while counters[0] < writes + 100:
            time.sleep(0.001)
        assert observer.compare().pages == 10
        assert observer.details()["blocks"][0]["tracking-page-size"] == 4096
        observer.close()


@pytest.mark.parametrize(
    ("size", "tracking", "reason"),
    [
        (1024, "vcpu-log", None),
        (0, "userfaultfd-wp-messages", "the guest has no dirty rings: its --dirty-ring-size is 0"),
    ],
)
def test_a_measurement_says_the_size_of_the_guests_own_rings(size, tracking, reason):
    for finding in probe() if reason else ():
        if "dirty-ring" in finding.detail and not finding.works:
            pytest.skip(f"{finding.name}: {finding.detail}; {finding.cure}")
    with guest(f"--dirty-ring-size={size}") as (pid, _):
        observer = exact_observer(find_blocks(pid), Mode.DIRTY_RING, pid=pid)
        details = observer.details()
        observer.close()
    assert (details["tracking"], details.get("tracking-reason")) == (tracking, reason)
    assert details["dirty-ring-size"] == (size or 4096)


@pytest.fixture
def block():
    fd = os.memfd_create("memory-backend-memfd")
    os.ftruncate(fd, 64 * 4096)
    yield file_memory_block(f"/proc/self/fd/{fd}", "pc.ram")
    os.close(fd)


@pytest.fixture
def make_log(block):
    """Make what is named as a log: of the block, one vCPU, sealed as asked for."""
    opened = []

    def make(word=None, seals=fcntl.F_SEAL_SHRINK, n_pages=64, grow=0):
        blocks = core.log_blocks([block.memory.inode], [n_pages])
        fd = os.memfd_create(LOG_NAME, os.MFD_ALLOW_SEALING)
        size = core.log_bytes(1, blocks)
        os.ftruncate(fd, size + grow)
        mapping = mmap.mmap(fd, size)
        words = np.frombuffer(mapping, dtype=np.uint64)
        DirtyLogFile(words, 1, blocks).publish(0)
        if word is not None:
            words[word[0]] = word[1]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        opened.append((fd, mapping))
        return words

    yield make
    for fd, _ in opened:
        os.close(fd)


def test_a_log_is_read_if_nothing_is_wrong_with_it(make_log, block):
    make_log()
    GuestLog([block], os.getpid()).close()


@pytest.mark.parametrize(
    "faults",
    [
        {"seals": fcntl.F_SEAL_GROW},
        {"word": (0, 7)},
        {"word": (1, 99)},
        {"word": (2, 0)},
        {"word": (2, 1 << 63)},
        {"word": (3, 1 << 63)},
        {"word": (3, 0)},
        {"word": (6, 0)},
        {"word": (6, 8192)},
        {"word": (6, 4095)},
        {"word": (6, 1 << 63)},
        {"word": (512 + 2, 1 << 63)},
        {"word": (512 + 1, 12345)},
        {"n_pages": 63},
        {"grow": 8},
    ],
    ids=str,
)
def test_what_is_no_log_of_the_block_is_left_alone(make_log, block, faults):
    make_log(**faults)
    gc.collect()  # what tests before this one have left may close descriptors
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NoLogError):
        GuestLog([block], os.getpid())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("written", "entry"), [(4096 + 33, 0), (1 << 63, 0), (1, 64), (1, (1 << 64) - 1)]
)
def test_a_ring_that_says_what_cannot_be_is_an_error(make_log, block, written, entry):
    words = make_log()
    log = GuestLog([block], os.getpid())
    ring = 512 + 4  # after the header and one block
    words[ring], words[ring + 16] = written, entry
    with pytest.raises(OSError, match="rotocol"):
        log.file.harvest(0, log.outside())
    log.close()
