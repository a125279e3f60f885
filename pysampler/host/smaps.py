# SPDX-License-Identifier: MIT
"""/proc/PID/smaps: flags and page sizes of mappings, which /proc/PID/maps does not have.

Reading it is expensive: the kernel walks all page tables, 10 ms per GiB of small pages. Meanwhile
it holds a lock that delays the process in mapping memory. So read it when there is a reason, and
not in every pass.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from pysampler.host.maps import Mapping, parse_mapping

if TYPE_CHECKING:
    from collections.abc import Iterator

# The first line of a mapping; those that follow begin with a capital letter.
_HEAD = re.compile(rb"[0-9a-f]+-[0-9a-f]+ ")


def read_smaps(pid: int) -> Iterator[Mapping]:
    """Yield the mappings of a process with their flags and page sizes, by rising address.

    Raises:
        OSError: there is no such process, it may not be read, or the kernel does not tell.
    """
    mapping: Mapping | None = None
    page_size = 4096
    with open(f"/proc/{pid}/smaps", "rb") as smaps:
        for line in smaps:  # bytes: at the ends of lines only
            if _HEAD.match(line):
                mapping = parse_mapping(line.rstrip(b"\n"))
            elif mapping is None:
                continue
            elif line.startswith(b"KernelPageSize:"):
                page_size = int(line.split()[1]) << 10
            elif line.startswith(b"VmFlags:"):
                flags = frozenset(line.decode("ascii").split()[1:])
                yield replace(mapping, flags=flags, page_size=page_size)
                mapping = None
