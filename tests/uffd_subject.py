"""Userfaultfd for processes that a test starts: text for subject(), by the bare system calls."""

import os
import platform

import pytest

SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}.get(platform.machine())

# Numbers of linux/userfaultfd.h. `missing` registers memory so that nobody serves it yet.
UFFD = f"""
import fcntl, struct
libc = ctypes.CDLL(None, use_errno=True)

def uffd_open():
    fd = libc.syscall({SYS_USERFAULTFD}, os.O_CLOEXEC | os.O_NONBLOCK)
    assert fd >= 0, ctypes.get_errno()
    fcntl.ioctl(fd, 0xC018AA3F, struct.pack("QQQ", 0xAA, 0, 0))
    return fd

def missing(fd, address, length):
    fcntl.ioctl(fd, 0xC020AA00, struct.pack("QQQQ", address, length, 1, 0))

def given_up(fd, address, length):
    fcntl.ioctl(fd, 0x8010AA01, struct.pack("QQ", address, length))

def arrive(fd, address, content):
    source = ctypes.create_string_buffer(content, len(content))
    place = struct.pack("QQQQq", address, ctypes.addressof(source), len(content), 0, 0)
    fcntl.ioctl(fd, 0xC028AA03, place)

def drop(address, length):
    assert libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), 4) == 0  # MADV_DONTNEED
"""


def needs_userfaultfd():
    """Skip a test where there is none, and say why."""
    if SYS_USERFAULTFD is None:
        pytest.skip(f"the number of userfaultfd() on {platform.machine()} is not known here")
    if os.geteuid() and not os.access("/dev/userfaultfd", os.R_OK):
        with open("/proc/sys/vm/unprivileged_userfaultfd") as allowed:
            if allowed.read().strip() == "0":
                pytest.skip("userfaultfd needs root here: vm.unprivileged_userfaultfd is 0")
