"""Memory of all kinds, and how to write it."""

import ctypes
import mmap
import os
from contextlib import contextmanager

from pysampler import core

PAGE = 4096
HUGE = 2 << 20


def write_page(memory, page, value=1):
    """Write a byte in the middle of a page, with the interpreter's lock released."""
    ctypes.memset(core.address_of(memory) + page * PAGE + 1234, value, 1)


def anonymous(n_pages):
    return mmap.mmap(-1, n_pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def filled(memory):
    for at in range(0, len(memory), PAGE):
        memory[at] = 255
    return memory


def transparent_huge(n_pages):
    memory = anonymous(n_pages + 2 * HUGE // PAGE)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return filled(memory)


def memfd(n_pages, flags=os.MFD_CLOEXEC):
    fd = os.memfd_create("memory", flags)
    try:
        os.ftruncate(fd, n_pages * PAGE)
        return mmap.mmap(fd, n_pages * PAGE)
    finally:
        os.close(fd)


KINDS = {
    "anonymous, untouched": anonymous,
    "anonymous, present": lambda n: filled(anonymous(n)),
    "anonymous, huge": transparent_huge,
    "shared, untouched": lambda n: mmap.mmap(-1, n * PAGE),
    "memfd, holes": memfd,
    "memfd, present": lambda n: filled(memfd(n)),
}


@contextmanager
def tracking(observer):
    """Run an observer from its baseline to its end."""
    try:
        observer.warm_up()
        observer.baseline()
        yield observer
    finally:
        observer.close()
