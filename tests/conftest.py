import ctypes
import mmap
import os
import signal

import pytest
from hypothesis import settings

from pysampler import core
from pysampler.core import Hash, Hasher

# Timing is never asserted, and a busy machine is no failure.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

# A shell starts what it puts into the background with SIGINT ignored; our children would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor do users have this: what is left in a buffer makes the interpreter's exit fail.
os.environ.pop("PYTHONUNBUFFERED", None)


def pytest_configure():
    # A run under nohup ignores it, and so would what the tests start and end.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


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
