# SPDX-License-Identifier: MIT
"""userfaultfd: write-protected memory, of this process or of one that offers its descriptor.

A userfaultfd belongs to the address space of the process that opened it, whoever uses it. So a
process that wants to be tracked from outside opens idle ones (`offer_userfaultfd`). Another process
that may ptrace it finds them in /proc/PID/fdinfo, and copies one by pidfd_getfd().
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pysampler import core
from pysampler.core import UffdKind
from pysampler.errors import FaultError, MissingFeatureError, SourceError
from pysampler.host.rights import process_error
from pysampler.tracking.cleanup import Cleanup
from pysampler.tracking.memory import UntrackableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pysampler.core import Range
    from pysampler.memory.ramblock import RAMBlock
    from pysampler.tracking.memory import TrackedMemory

_LINK = "anon_inode:[userfaultfd]"
_INTERNAL_FEATURES = 1 << 31  # the kernel's mark that the features are set

_CURES = {
    errno.EPERM: "userfaultfd is not permitted: be root, have CAP_SYS_PTRACE, or"
    " `sysctl vm.unprivileged_userfaultfd=1`",
    errno.ENOSYS: "userfaultfd is missing: the kernel needs CONFIG_USERFAULTFD",
}
_NEEDED = {
    UffdKind.ASYNC: "asynchronous write-protection needs Linux 6.7 on x86-64 or arm64",
    UffdKind.MESSAGES: "write-protection of memory not yet touched needs Linux 6.4",
}


def offer_userfaultfd() -> list[int]:
    """Open idle userfaultfds, so that a process that may ptrace this one can track its writes.

    Returns:
        Descriptors to be kept open; none where the kernel or the rights do not allow it.
    """
    offered = []
    for kind in UffdKind:
        with suppress(OSError):
            offered.append(core.uffd_open(kind))
    return offered


def open_userfaultfd(kind: UffdKind) -> int:
    """Open a userfaultfd of this process.

    Raises:
        MissingFeatureError: kernel or rights do not allow it; the message names the cure.
    """
    try:
        return core.uffd_open(kind)
    except OSError as error:
        why = _CURES.get(error.errno or 0, f"userfaultfd: {error.strerror}")
        if error.errno == errno.EOPNOTSUPP:
            why = _NEEDED[kind]
        raise MissingFeatureError(why) from error


class WriteProtection:
    """Memory of one process, registered for write-protection as long as this is open.

    Registered memory is not protected yet: nothing happens to its writers before `protect`.

    Attributes:
        fd: the userfaultfd.
        own_fd: a private copy of it.
        pagemap: /proc/PID/pagemap, open.
        cleanup: the cleanup process, for the memory of another process; else None.

    Args:
        memory: the memory to register.
        kind: how the kernel reports writes.
        pid: the process.

    Raises:
        MissingFeatureError: there is no userfaultfd to be had.
        UntrackableError: this memory cannot be write-protected.
        SourceError: no such process, it is tracked already, or there can be no cleanup process.
    """

    def __init__(self, memory: TrackedMemory, kind: UffdKind, pid: int) -> None:
        self._memory = memory
        self._opener = os.getpid()
        self.cleanup: Cleanup | None = None
        with ExitStack() as stack:
            self.pagemap = _open_pagemap(pid)
            stack.callback(os.close, self.pagemap)
            if pid == os.getpid():
                self.fd = open_userfaultfd(kind)
            else:
                _lock(self.pagemap, pid)
                self.fd = _borrow(pid, kind)
            stack.callback(os.close, self.fd)
            self.own_fd = os.dup(self.fd)
            stack.callback(os.close, self.own_fd)
            if pid != os.getpid():
                self.cleanup = Cleanup(self.own_fd, memory.ranges)
                stack.callback(self.cleanup.close)
            self._register()
            self._stack = stack.pop_all()

    def _register(self) -> None:
        self._registered: list[Range] = []
        try:
            for memory in self._memory.ranges:
                core.uffd_register(self.fd, memory)
                self._registered.append(memory)
            self._memory.ranges = [
                memory._replace(page_size=core.uffd_page_size(self.fd, memory))
                for memory in self._registered
            ]
        except OSError as error:
            block = self._memory.owner(memory)
            self.unregister()
            raise _why_not(block, error) from error

    def protect(self) -> None:
        """Protect every page.

        Raises:
            FaultError: a part of the memory has gone.
        """
        for memory in self._memory.ranges:
            with self.watching(memory):
                core.uffd_protect(self.fd, memory)

    @contextmanager
    def watching(self, memory: Range) -> Iterator[None]:
        """Turn an OSError about memory into the FaultError that it stands for."""
        try:
            yield
        except OSError as error:
            idstr = self._memory.owner(memory).idstr
            raise FaultError(
                f"RAMBlock {idstr} can be tracked no more: it was mapped anew or given to another"
                f" tracker, or its process has ended ({error.strerror})",
                idstr=idstr,
            ) from error

    def check_cleanup(self) -> None:
        """Check that the cleanup process is there and has not let the guest go.

        Raises:
            FaultError: it is not, or has.
        """
        why = None if self.cleanup is None else self.cleanup.why_lost()
        if why is not None:
            raise FaultError(f"tracking has ended: {why}", idstr=self._memory.blocks[0].idstr)

    def unregister(self) -> None:
        """Give all memory back as it was; writers that wait go on."""
        while self._registered:
            # What was unmapped meanwhile, or ended with its process, has nothing to be undone.
            with suppress(OSError):
                core.uffd_unregister(self.own_fd, self._registered.pop())

    def close(self) -> None:
        """Unregister, and close; a second call does nothing, nor does one in a forked child."""
        if os.getpid() == self._opener:
            self.unregister()
            self._stack.close()


def _open_pagemap(pid: int) -> int:
    try:
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise process_error(error, pid) from error


def _lock(pagemap: int, pid: int) -> None:
    """Let one tracker from outside at a time use what a process offers."""
    try:
        fcntl.flock(pagemap, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise SourceError(f"process {pid} is already being tracked; wait for its end") from error


def _borrow(pid: int, kind: UffdKind) -> int:
    """Return a copy of the idle userfaultfd of that kind that a process offers."""
    wanted = core.uffd_features(kind)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            # Descriptors come and go meanwhile.
            with suppress(FileNotFoundError):
                if os.readlink(f"/proc/{pid}/fd/{name}") != _LINK:
                    continue
                with open(
                    f"/proc/{pid}/fdinfo/{name}", encoding="ascii", errors="replace"
                ) as fdinfo:
                    if _features(fdinfo.read()) == wanted:
                        return core.uffd_copy(pid, int(name))
    except OSError as error:
        raise process_error(error, pid) from error
    raise MissingFeatureError(
        f"process {pid} offers no userfaultfd, so nobody but itself can write-protect its memory;"
        " `pysampler guest` and pysampler.tracking.offer_userfaultfd() do"
    )


def _features(fdinfo: str) -> int:
    match = re.search(r"^API:\s*[0-9a-f]+:([0-9a-f]+):", fdinfo, re.MULTILINE)
    return int(match[1], 16) & ~_INTERNAL_FEATURES if match else 0


def _why_not(block: RAMBlock, error: OSError) -> SourceError:
    if error.errno == errno.EBUSY:
        return SourceError(
            f"RAMBlock {block.idstr} is under another userfaultfd: tracked already, or post-copy"
        )
    if error.errno == errno.EINVAL:
        return UntrackableError(
            f"RAMBlock {block.idstr} cannot be write-protected: the kernel does that for anonymous"
            " memory, memfd, tmpfs and hugetlbfs, in whole pages"
        )
    return SourceError(f"RAMBlock {block.idstr} cannot be write-protected: {error.strerror}")
