# SPDX-License-Identifier: MIT
"""RAMBlocks that are files."""

from __future__ import annotations

import os
import stat

from pysampler import core
from pysampler.errors import AccessError, SourceError, UsageError
from pysampler.host.rights import file_cure, process_error
from pysampler.memory.ramblock import FileMemory, ProcessMemory, RAMBlock
from pysampler.printable import printable
from pysampler.qemu.dirty_rate import PAGE_SIZE

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def file_block(path: str | os.PathLike[str], idstr: str | None = None) -> RAMBlock:
    """Return a whole file as a RAMBlock: on tmpfs, hugetlbfs or any other file system.

    Args:
        path: the file.
        idstr: its name; None for the file's own.

    Raises:
        UsageError: the path can name no file.
        SourceError: it is no regular file, cannot be opened or has no whole page.
    """
    try:
        name = os.fsdecode(path)
    except TypeError:
        raise UsageError(f"path: {type(path).__name__} names no file") from None
    if "\0" in name:
        raise UsageError(f"path: {name[:40]!r} has a NUL in it")
    return file_memory_block(name, os.path.basename(name) if idstr is None else idstr)


def process_fd_block(pid: int, fd: int) -> RAMBlock:
    """Return a file that another process holds open, such as a memfd, as a RAMBlock.

    Raises:
        SourceError: no such process or descriptor, no right to it, or no regular file.
    """
    path = f"/proc/{pid}/fd/{fd}"
    try:
        target = os.readlink(path)
    except FileNotFoundError as error:
        if os.path.isdir(f"/proc/{pid}"):
            raise SourceError(f"process {pid} has no descriptor {fd}") from error
        raise process_error(error, pid) from error
    except OSError as error:
        raise process_error(error, pid) from error
    return file_memory_block(path, printable(block_name(target)), user=ProcessMemory(pid, None))


def block_name(path: str) -> str:
    """Return the idstr of a mapped file: its last name, or a memfd's own."""
    return os.path.basename(path.removesuffix(" (deleted)")).removeprefix("memfd:")


def file_memory_block(
    path: str,
    idstr: str,
    *,
    offset: int = 0,
    used_length: int | None = None,
    user: ProcessMemory | None = None,
) -> RAMBlock:
    """Return a part of a file as a RAMBlock; by default all of its whole pages."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = next((name for test, name in _KINDS if test(status.st_mode)), "special")
            raise SourceError(f"{path}: is {kind}, not a file of guest memory")
        page_size = _backing_page_size(path)
    except PermissionError as error:
        raise AccessError(f"{path}: may not be read: {file_cure()}") from error
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    if used_length is None:
        used_length = (status.st_size - offset) // PAGE_SIZE * PAGE_SIZE
    if status.st_size == 0:
        raise SourceError(f"{path}: is empty")
    if used_length <= 0:
        raise SourceError(f"{path}: has {status.st_size} bytes, less than a page")
    memory = FileMemory(path, (status.st_dev, status.st_ino), offset, user)
    return RAMBlock(idstr, used_length, memory, page_size)


def _backing_page_size(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # On hugetlbfs, and only there, the block size is that of the huge pages.
        is_huge = core.file_system(fd) == core.HUGETLBFS_MAGIC
        return os.fstatvfs(fd).f_bsize if is_huge else 4096
    finally:
        os.close(fd)
