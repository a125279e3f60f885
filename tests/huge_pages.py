"""Huge pages for a test."""

import contextlib

import pytest


@contextlib.contextmanager
def huge_pages(n):
    """Reserve huge pages for a test."""
    path = "/proc/sys/vm/nr_hugepages"
    try:
        with open(path) as file:
            before = int(file.read())
        with open(path, "w") as file:
            file.write(str(before + n))
    except OSError as error:
        pytest.skip(f"huge pages cannot be reserved: {error}")
    try:
        with open("/proc/meminfo") as meminfo:
            free = next(int(line.split()[1]) for line in meminfo if line.startswith("HugePages_F"))
        if free < n:
            pytest.skip(f"only {free} huge pages could be reserved")
        yield
    finally:
        with open(path, "w") as file:
            file.write(str(before))
