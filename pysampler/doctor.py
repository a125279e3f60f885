# SPDX-License-Identifier: MIT
"""Find out what works on this machine by trying it, with reason and cure for the rest."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.core import Hash, Hasher, Simd
from pysampler.errors import PysamplerError
from pysampler.host.child import code_command
from pysampler.host.finding import Finding
from pysampler.host.rights import SUDO, check_access, hidepid
from pysampler.memory.reader import open_reader
from pysampler.memory.source import find_blocks, process_fd_block
from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.tracking.probe import probe
from pysampler.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pysampler.memory.ramblock import RAMBlock


# A process whose memory is of all kinds: private, a memfd, and one of huge pages if one is free;
# the memfds have holes. It says their descriptors.
_SUBJECT = """
import mmap, os, sys
size = 16 << 20
private = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
fd = os.memfd_create("memory-backend-memfd")
os.ftruncate(fd, size)
private[:] = b"p" * size
with mmap.mmap(fd, size) as shared:
    shared[:4096] = b"s" * 4096
huge_fd = -1
try:
    huge_fd = os.memfd_create("memory-backend-memfd", os.MFD_HUGETLB)
    huge_size = os.fstatvfs(huge_fd).f_bsize
    os.ftruncate(huge_fd, 2 * huge_size)
    with mmap.mmap(huge_fd, huge_size) as shared:
        shared[:1] = b"h"
except OSError:
    huge_fd = -1
print(fd, huge_fd, flush=True)
sys.stdin.read()
"""

# Becomes another user, whose processes in general can be dumped. To start as one is no way: that
# user may not be allowed to run this Python.
_STRANGER = 65534
_BECOME_STRANGER = f"""
import ctypes, mmap, os, sys
os.setgroups([]); os.setgid({_STRANGER}); os.setuid({_STRANGER})
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
"""


def examine() -> Iterator[Finding]:
    """Yield one finding after the other; each is tried when it is asked for."""
    yield from _sources()
    yield _rights()
    yield from probe()
    yield from _kernels()


def _sources() -> Iterator[Finding]:
    try:
        subject = subprocess.Popen(
            code_command(_SUBJECT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    except OSError as error:
        yield _no_subject(f"{sys.executable}: {error.strerror}")
        yield _huge_pages(None)
        return
    with subject:
        assert subject.stdout is not None  # noqa: S101 (for the type checker: it is a pipe)
        words = subject.stdout.readline().split()
        if len(words) != 2:
            yield _no_subject(f"{sys.executable} ended at once")
            yield _huge_pages(None)
            return
        fd, huge_fd = map(int, words)
        yield _try("memfd of another process", lambda: _read_with_holes(subject.pid, fd))
        yield _try(
            "private memory of another process",
            lambda: _read(find_blocks(subject.pid)[0]),
        )
        huge = None if huge_fd < 0 else lambda: _read_with_holes(subject.pid, huge_fd)
        yield _huge_pages(huge)
        # Leaving the `with` closes its stdin, which ends it.


def _no_subject(why: str) -> Finding:
    return Finding(
        "memory of another process",
        works=False,
        detail=f"not tried, for no process could be started: {why}",
        cure="run it as a user who may run this Python",
    )


def _try(name: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding(name, works=True, detail=attempt())
    except (PysamplerError, OSError) as error:
        what, _, cure = str(error).partition(": ")
        return Finding(name, works=False, detail=what, cure=cure)


def _read(block: RAMBlock) -> str:
    """Hash all pages of a block and tell how it was read."""
    with closing(open_reader(block, PAGE_SIZE)) as reader:
        vfns = np.arange(block.used_length // PAGE_SIZE, dtype=np.uint64)
        reader.begin_pass()
        states = reader.states(vfns, vfns.astype(np.uint32))
        if states is not None:
            vfns = vfns[states == core.PageState.PRESENT]
        hashed = reader.hash_pages(Hasher(Hash.XXH64), vfns, np.empty(len(vfns), dtype=np.uint64))
        reader.end_pass()
        return f"{reader.access}: {hashed} pages read"


def _read_with_holes(pid: int, fd: int) -> str:
    """Read a file that is mostly holes, and check that they are still holes."""
    path = f"/proc/{pid}/fd/{fd}"
    before = os.stat(path).st_blocks
    detail = _read(process_fd_block(pid, fd))
    after = os.stat(path).st_blocks
    if after != before:
        raise PysamplerError(
            f"reading filled holes, {format_size(before * 512)} became {format_size(after * 512)}:"
            " please report this kernel"
        )
    return f"{detail}, holes left alone ({format_size(after * 512)} allocated before and after)"


def _rights() -> Finding:
    """Read a process of another user: one that is started, else one that is running."""
    name = "processes of other users"
    if os.geteuid() == 0 and os.access(sys.executable, os.X_OK):
        stranger = subprocess.Popen(
            code_command(_BECOME_STRANGER + _SUBJECT),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with stranger:
            assert stranger.stdout is not None  # noqa: S101 (for the type checker: it is a pipe)
            if len(words := stranger.stdout.readline().split()) == 2:
                return _try(name, lambda: _read_of_stranger(stranger.pid, int(words[0])))
    pid = _process_of_another_user()
    if pid is None:
        hidden = "" if hidepid() == "off" else f" (/proc hides them: hidepid={hidepid()})"
        return Finding(
            name,
            works=False,
            detail=f"not tried: none could be started, none is seen{hidden}",
            cure=f"run {SUDO}, outside of a container, or with CAP_SYS_PTRACE and"
            " CAP_DAC_READ_SEARCH",
        )

    def look() -> str:
        check_access(pid)
        return f"maps and pagemap of process {pid} could be opened"

    return _try(name, look)


def _read_of_stranger(pid: int, fd: int) -> str:
    private = _read(find_blocks(pid)[0])
    return f"{private} of uid {_STRANGER}; memfd: {_read(process_fd_block(pid, fd))}"


def _process_of_another_user() -> int | None:
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    return next((pid for pid in pids if _is_of_another_user(pid)), None)


def _is_of_another_user(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            # A kernel thread has no command line.
            return os.stat(f"/proc/{pid}").st_uid != os.geteuid() and bool(cmdline.read(1))
    except OSError:  # it has ended, or is hidden
        return False


def _huge_pages(attempt: Callable[[], str] | None) -> Finding:
    """Tell of huge pages; ``attempt`` reads some where there were some to be had."""
    name = "huge pages"
    if attempt is not None:
        return _try(name, attempt)
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            total = next(int(line.split()[1]) for line in meminfo if line.startswith("HugePages_T"))
    except (OSError, StopIteration):
        return Finding(name, works=False, detail="this kernel has no hugetlbfs")
    if total:
        return Finding(name, works=True, detail=f"{total} are reserved, none could be had to try")
    return Finding(
        name,
        works=False,
        detail="none are reserved, which matters only for guests that want them",
        cure="sysctl vm.nr_hugepages=N",
    )


def _kernels() -> Iterator[Finding]:
    page_count = 64  # 256 KiB: stays in the L2 cache, so that the kernel is measured
    pages = np.random.default_rng(0).integers(0, 256, page_count * PAGE_SIZE, dtype=np.uint8)
    for which in (Hash.XXH64, Hash.XXH3, Hash.CRC32):
        levels = [Simd.BASE] if which is Hash.CRC32 else list(Simd)[: core.simd_best() + 1]
        speeds = []
        try:
            for simd in levels:
                speed = _gigabytes_per_second(Hasher(which, simd), pages, page_count)
                speeds.append(f"{simd.name} {speed:.1f}")
        except PysamplerError as error:
            yield Finding(f"hash {which.name}", works=False, detail=str(error))
            continue
        library = f" (zlib {core.zlib_version()})" if which is Hash.CRC32 else ""
        yield Finding(
            f"hash {which.name}", works=True, detail=f"GB/s in cache: {', '.join(speeds)}{library}"
        )


def _gigabytes_per_second(hasher: Hasher, pages: object, page_count: int) -> float:
    vfns = np.arange(page_count, dtype=np.uint64)
    hashes = np.empty_like(vfns)
    best_ns = min(
        _time_ns(lambda: core.hash_mapped(hasher, pages, PAGE_SIZE, vfns, hashes))
        for _ in range(50)
    )
    return page_count * PAGE_SIZE / best_ns


def _time_ns(work: Callable[[], object]) -> int:
    begin = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - begin
