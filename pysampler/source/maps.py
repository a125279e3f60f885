# SPDX-License-Identifier: MIT
"""/proc/PID/maps, parsed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Mapping:
    """One line of /proc/PID/maps.

    Attributes:
        start: first address.
        end: address after the last.
        writable: may be written.
        executable: may be executed.
        accessible: has any access; a guard page has none.
        shared: writes reach the file, or other processes.
        offset: of ``start`` in the file, bytes.
        inode: (device, inode); (0, 0) for anonymous memory.
        name: path, ``[heap]`` or the like; empty for anonymous memory.
    """

    start: int
    end: int
    writable: bool
    executable: bool
    accessible: bool
    shared: bool
    offset: int
    inode: tuple[int, int]
    name: str

    @property
    def is_anonymous(self) -> bool:
        """Whether it is private and of no file: a page that was not touched holds zeros."""
        return not self.shared and (self.inode == (0, 0) or "/anon_hugepage" in self.name)

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start


def read_maps(pid: int) -> list[Mapping]:
    """Return the mappings of a process, by rising address.

    Raises:
        OSError: there is no such process, or it may not be read.
    """
    # Names are bytes to the kernel; surrogates keep those that are not UTF-8.
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as maps:
        return [_parse(line) for line in maps]


# A process may have as many mappings (vm.max_map_count), and from pass to pass most stay.
@lru_cache(maxsize=65530)
def _parse(line: str) -> Mapping:
    fields = line.rstrip("\n").split(maxsplit=5)
    start, end = (int(address, 16) for address in fields[0].split("-"))
    major, minor = (int(number, 16) for number in fields[3].split(":"))
    rights, inode = fields[1], int(fields[4])
    return Mapping(
        start=start,
        end=end,
        writable=rights[1] == "w",
        executable=rights[2] == "x",
        accessible=rights[:3] != "---",
        shared=rights[3] == "s",
        offset=int(fields[2], 16),
        inode=(os.makedev(major, minor), inode) if inode else (0, 0),
        name=fields[5] if len(fields) > 5 else "",
    )


def is_mapped(mappings: list[Mapping], address: int, length: int) -> bool:
    """Return whether every page of a range is mapped; ``mappings`` rise by address."""
    reached = address
    for mapping in mappings:
        if mapping.start <= reached < mapping.end:
            reached = mapping.end
    return reached >= address + length
