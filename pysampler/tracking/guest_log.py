# SPDX-License-Identifier: MIT
"""Reading the dirty log that an emulated guest's vCPUs keep, from any process that may trace it."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.core import DirtyLogFile, LogMode
from pysampler.errors import SourceError
from pysampler.host.rights import process_error
from pysampler.memory.ramblock import FileMemory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pysampler.memory.ramblock import RAMBlock

LOG_NAME = "pysampler-dirty-log"

MOST_VCPUS = 255
MOST_BLOCKS = 4096

PAGE_SIZE = core.GUEST_PAGE_SIZE
_LINK = f"/memfd:{LOG_NAME} (deleted)"
# The guest itself takes the lock for a moment, to see whether its reader has gone.
_LOCK_S = 0.1


class NoLogError(Exception):
    """The process keeps no dirty log of these blocks, or not for us; its text says why not."""


class GuestLog:
    """The dirty log of a guest, open for one reader. Logging is off before and after.

    Attributes:
        file: the log as it is mapped here.

    Args:
        blocks: RAMBlocks that the log must cover.
        pid: the guest's process.

    Raises:
        NoLogError: there is no log of them, or the guest reads it itself.
        SourceError: somebody else reads it already, or there is no such process.
    """

    def __init__(self, blocks: Sequence[RAMBlock], pid: int) -> None:
        for fd in _candidates(pid):
            try:
                mapping, file = _map(fd)
                parts = [_part_of(block, file) for block in blocks]
            except (OSError, ValueError, NoLogError):
                os.close(fd)
                continue
            break
        else:
            raise NoLogError
        self.file = file
        self._parts = parts
        self._mapping = mapping
        try:
            lock_log(fd, pid)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, SourceError) and file.own_reader:
                raise NoLogError(
                    "a migration or a dirty limit of the guest reads its dirty log"
                ) from error
            raise
        self._mode = LogMode.OFF
        self._finalizer = weakref.finalize(self, _close, file, fd, os.getpid())

    def close(self) -> None:
        """Turn logging off and close the log; a second call does nothing."""
        self._finalizer()

    def start(self, mode: LogMode) -> None:
        """Turn logging on, with all pages clean and rings of what was written since then.

        Raises:
            OSError: there are no barriers here (membarrier).
        """
        self.file.set_mode(LogMode.OFF)  # an earlier reader may have left it on
        seen = np.zeros(self.file.n_words, dtype=np.uint64)
        for vcpu in range(self.file.n_vcpus):
            self.file.harvest(vcpu, seen)
        self.file.set_mode(mode)
        self.file.reset()
        self._mode = mode

    def is_kept(self) -> bool:
        """Whether the guest still logs; not if it has waited for us for too long."""
        return self.file.mode is self._mode

    def count(self) -> int:
        """Return how many pages of the blocks are dirty; they stay so."""
        return sum(self.file.count(index, first, n) for index, first, n in self._parts)

    def take(self, i: int) -> NDArray[np.uint64]:
        """Get and reset the dirty pages of the file that block ``i`` is in.

        Returns:
            Words; page ``n`` of the file is bit ``n % 64`` of word ``n // 64``. A page that is
            read after this has all that was written to it before its bit was taken.

        Raises:
            OSError: there are no barriers here (membarrier).
        """
        return self.file.take(self._parts[i][0])

    def outside(self) -> NDArray[np.uint64]:
        """Return bits of all pages of the log, of which those of other blocks are set."""
        bits = np.ones(self.file.n_words * 64, dtype=np.bool_)
        for index, first, n in self._parts:
            start = self.file.blocks[index].first_word * 64 + first
            bits[start : start + n] = False
        return np.packbits(bits, bitorder="little").view(np.uint64)


def _candidates(pid: int) -> Iterator[int]:
    """Open each descriptor of a process that is named as a log is."""
    folder = f"/proc/{pid}/fd"
    try:
        names = sorted(os.listdir(folder), key=int)
    except OSError as error:
        raise process_error(error, pid) from error
    for name in names:
        with suppress(OSError):  # closed meanwhile, or not for us
            if os.readlink(f"{folder}/{name}") == _LINK:
                yield _open_memfd(f"{folder}/{name}")


def _open_memfd(path: str) -> int:
    """Open a memfd that cannot shrink, whatever else may have its name.

    Raises:
        OSError: it is something else.
    """
    probe = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        # Only a memfd has such seals, and they are never taken back: a mapping of it keeps its
        # pages, so reading raises no SIGBUS. One of huge pages may lack memory.
        if (
            not stat.S_ISREG(os.fstat(probe).st_mode)
            or core.file_system(probe) != core.TMPFS_MAGIC
            or not fcntl.fcntl(probe, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        ):
            raise OSError(errno.EINVAL, "not a sealed memfd")
        return os.open(f"/proc/self/fd/{probe}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(probe)


def _map(fd: int) -> tuple[mmap.mmap, DirtyLogFile]:
    size = os.fstat(fd).st_size
    mapping = mmap.mmap(fd, size - size % 8)
    words: NDArray[np.uint64] = np.frombuffer(mapping, dtype=np.uint64)
    return mapping, DirtyLogFile.read(words, MOST_VCPUS, MOST_BLOCKS)


def _part_of(block: RAMBlock, file: DirtyLogFile) -> tuple[int, int, int]:
    """Return the log's number of a block's file, the block's first page in it, and its pages."""
    memory = block.memory
    if isinstance(memory, FileMemory) and memory.offset % PAGE_SIZE == 0:
        first, n = memory.offset // PAGE_SIZE, block.used_length // PAGE_SIZE
        for index, logged in enumerate(file.blocks):
            if logged.file == memory.inode and first + n <= logged.n_pages:
                return index, first, n
    raise NoLogError


def lock_log(fd: int, pid: int) -> None:
    """Become the one reader of the log that is open as ``fd``, until that is closed or unlocked.

    Raises:
        SourceError: somebody else reads it.
    """
    deadline = time.monotonic() + _LOCK_S
    while not _try_lock(fd):
        if time.monotonic() > deadline:
            raise SourceError(
                f"the dirty log of process {pid} is being read by another measurement or"
                " migration; wait until that has ended"
            )
        time.sleep(0.005)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close(file: DirtyLogFile, fd: int, opener: int) -> None:
    if os.getpid() == opener:  # a forked child has the lock as well, and must not end the log
        with suppress(OSError):
            file.set_mode(LogMode.OFF)
        fcntl.flock(fd, fcntl.LOCK_UN)  # the mapping has a descriptor of its own
    os.close(fd)
