# SPDX-License-Identifier: MIT
"""/proc/PID/maps, parsed."""

from __future__ import annotations

import os
import re
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
        name: path, ``[heap]`` or the like; empty for anonymous memory. It is another user's text:
            show it through ``printable()`` only.
        flags: two letters each, as VmFlags of smaps has them; None where only maps was read.
        page_size: bytes of the pages that the kernel backs it with, not of a transparent huge page;
            None where only maps was read.
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
    flags: frozenset[str] | None = None
    page_size: int | None = None

    @property
    def is_anonymous(self) -> bool:
        """Whether it is private and has no file, so that an untouched page holds zeros."""
        return not self.shared and (self.inode == (0, 0) or self.name == "/anon_hugepage (deleted)")

    @property
    def length(self) -> int:
        """Bytes."""
        return self.end - self.start


def is_device(mapping: Mapping) -> bool:
    """Return whether a mapping is of a device: its registers are no memory."""
    return re.match(r"/dev/(?!shm/|zero|hugepages|dax)", mapping.name) is not None


def read_maps(pid: int) -> list[Mapping]:
    """Return the mappings of a process, by rising address.

    Raises:
        OSError: there is no such process, or it may not be read.
    """
    # A file's name may hold any byte but NUL; the kernel escapes only the end of a line in it.
    with open(f"/proc/{pid}/maps", "rb") as maps:
        return [parse_mapping(line) for line in maps.read().split(b"\n") if line]


# A process may have as many mappings (vm.max_map_count), and from pass to pass most stay.
@lru_cache(maxsize=65530)
def parse_mapping(line: bytes) -> Mapping:
    """Return the mapping of a line without its line end, of maps or smaps."""
    addresses, rights, offset, device, inode, *name = line.split(b" ", 5)
    start, end = addresses.split(b"-")
    major, minor = device.split(b":")
    number = int(inode)
    return Mapping(
        start=int(start, 16),
        end=int(end, 16),
        writable=rights[1:2] == b"w",
        executable=rights[2:3] == b"x",
        accessible=rights[:3] != b"---",
        shared=rights[3:4] == b"s",
        offset=int(offset, 16),
        inode=(os.makedev(int(major, 16), int(minor, 16)), number) if number else (0, 0),
        # Surrogates keep what is not UTF-8, so that the name still leads to its file.
        name=os.fsdecode(name[0].lstrip(b" ")) if name else "",
    )


def is_mapped(mappings: list[Mapping], address: int, length: int) -> bool:
    """Return whether every page of a range is mapped; ``mappings`` rise by address."""
    reached = address
    for mapping in mappings:
        if mapping.start <= reached < mapping.end:
            reached = mapping.end
    return reached >= address + length
