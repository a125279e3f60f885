# SPDX-License-Identifier: MIT
"""/proc/PID/smaps: what /proc/PID/maps does not tell of a mapping.

The kernel walks all page tables for it, 10 ms per GiB of small pages, and holds a lock meanwhile
that delays whoever maps memory: to be read when there is a reason, not in every pass.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEADER = re.compile(
    rb"([0-9a-f]+)-([0-9a-f]+) \S{4} ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)(?: |$)"
)


@dataclass
class MappingDetails:
    """One mapping.

    Attributes:
        start: first address.
        end: address after the last.
        offset: of ``start`` in the file, bytes.
        inode: (device, inode); (0, 0) for anonymous memory.
        page_size: bytes of the pages that the kernel backs it with; not a transparent huge page's.
        flags: the kernel's two-letter flags; ``um``: userfaultfd is told of missing pages.
    """

    start: int
    end: int
    offset: int
    inode: tuple[int, int]
    page_size: int = 4096
    flags: frozenset[str] = frozenset()


def read_smaps(pid: int) -> Iterator[MappingDetails]:
    """Yield the mappings of a process, by rising address.

    Raises:
        OSError: there is no such process, or it may not be read.
    """
    mapping: MappingDetails | None = None
    with open(f"/proc/{pid}/smaps", "rb") as smaps:
        for line in smaps:
            if mapping is not None and line.startswith(b"KernelPageSize:"):
                mapping.page_size = int(line.split()[1]) << 10
            elif mapping is not None and line.startswith(b"VmFlags:"):
                mapping.flags = frozenset(line.decode("ascii").split()[1:])
                yield mapping
                mapping = None
            elif mapping is None and (header := _HEADER.match(line)):
                start, end, offset, major, minor = (int(n, 16) for n in header.groups()[:5])
                inode = int(header[6])
                mapping = MappingDetails(
                    start, end, offset, (os.makedev(major, minor), inode) if inode else (0, 0)
                )
