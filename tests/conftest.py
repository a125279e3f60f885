import ctypes
import mmap
import os

import numpy as np
import pytest

from pysampler import core
from pysampler.core import Hash, Hasher

PAGE = 4096


def fill_page(seed):
    """A page of content that depends on nothing but the seed; never change this function."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, PAGE, np.uint8).tobytes()


class ScriptedClock:
    """Invented time: waiting applies the writes that are due, and costs nothing.

    Args:
        writes: callables by the ms after which they happen.
    """

    def __init__(self, writes=None):
        self._writes = sorted((writes or {}).items())
        self._now_ns = 1_000_000_000
        self._start_ns = self._now_ns

    def now_ns(self):
        return self._now_ns

    def wait_until(self, deadline_ns):
        self._now_ns = max(self._now_ns, deadline_ns)
        while self._writes and self._start_ns + self._writes[0][0] * 1_000_000 <= deadline_ns:
            self._writes.pop(0)[1]()


@pytest.fixture
def memfd():
    """Make memfds: length -> (fd, writable mmap), closed at the end."""
    made = []

    def make(length, name="ram"):
        fd = os.memfd_create(name)
        os.ftruncate(fd, length)
        made.append((fd, mmap.mmap(fd, length)))
        return made[-1]

    yield make
    for fd, memory in made:
        memory.close()
        os.close(fd)


@pytest.fixture
def xxh64():
    return Hasher(Hash.XXH64)


@pytest.fixture
def protect():
    """Return a function that makes ``length`` bytes at ``offset`` of a mmap unreadable."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def protect(memory, offset, length):
        prot_none = 0
        if libc.mprotect(core.address_of(memory) + offset, length, prot_none) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "mprotect")

    return protect
