# SPDX-License-Identifier: MIT
"""Find out which ways of exact tracking work here, by using each of them once."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress

import numpy as np

from pysampler import core
from pysampler.core import HOST_PAGE_SIZE, Range, UffdKind
from pysampler.errors import MissingFeatureError
from pysampler.host.finding import Finding
from pysampler.tracking.soft_dirty import has_soft_dirty
from pysampler.tracking.userfaultfd import open_userfaultfd


def probe() -> list[Finding]:
    """Return the findings about exact tracking on this kernel, with these rights."""
    return [
        _userfaultfd(UffdKind.ASYNC, "userfaultfd write-protect, asynchronous", "dirty-bitmap"),
        _pagemap_scan(),
        _userfaultfd(UffdKind.MESSAGES, "userfaultfd write-protect, messages", "dirty-ring"),
        _soft_dirty(),
    ]


def _userfaultfd(kind: UffdKind, name: str, use: str) -> Finding:
    try:
        os.close(open_userfaultfd(kind))
    except MissingFeatureError as error:
        why, _, cure = str(error).partition(": ")
        return Finding(name, works=False, detail=why, cure=cure or why)
    return Finding(name, works=True, detail=f"for {use}", cure="")


def _pagemap_scan() -> Finding:
    name = "PAGEMAP_SCAN"
    try:
        n_written = _write_one_page_of_two()
    except MissingFeatureError:
        return Finding(name, works=False, detail="userfaultfd is missing", cure="see userfaultfd")
    except OSError as error:
        why = error.strerror or str(error)
        return Finding(name, works=False, detail=why, cure="PAGEMAP_SCAN needs Linux 6.7")
    if n_written != 1:
        why = f"one page was written, {n_written} were reported"
        return Finding(name, works=False, detail=why, cure="another kernel; please report this one")
    return Finding(name, works=True, detail="for dirty-bitmap", cure="")


def _write_one_page_of_two() -> int:
    memory = mmap.mmap(-1, 2 * HOST_PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages = Range(core.address_of(memory), len(memory), 0)
    uffd = open_userfaultfd(UffdKind.ASYNC)
    try:
        core.uffd_register(uffd, pages)
        core.uffd_protect(uffd, pages)
        memory[0] = 1
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return core.written_pages(pagemap, pages, np.zeros(1, dtype=np.uint8))
        finally:
            os.close(pagemap)
    finally:
        with suppress(OSError):
            core.uffd_unregister(uffd, pages)
        os.close(uffd)


def _soft_dirty() -> Finding:
    name = "soft-dirty bits"
    if has_soft_dirty():
        return Finding(name, works=True, detail="for dirty-bitmap of any process", cure="")
    return Finding(
        name,
        works=False,
        detail="a written page does not get the bit",
        cure="a kernel with CONFIG_MEM_SOFT_DIRTY=y",
    )
