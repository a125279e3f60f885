# SPDX-License-Identifier: MIT
"""RAMBlock: a named run of guest memory, and where its bytes are."""

from __future__ import annotations

from dataclasses import dataclass

from pysampler.units import format_size


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes in the address space of another process.

    Attributes:
        pid: the process.
        address: of the first byte; None for a file that the process merely holds open.
        anonymous: whether all of it is private and has no file. Only then an untouched page
            holds zeros.
        file: for a private mapping of a file: the place of the content of pages that the
            process has not touched. None where it is unknown or may not be opened.
    """

    pid: int
    address: int | None
    anonymous: bool = False
    file: FileMemory | None = None


@dataclass(frozen=True)
class FileMemory:
    """Bytes of a file: tmpfs, hugetlbfs, memfd or any regular one.

    Attributes:
        path: how to open it, which may be a name below /proc/PID.
        inode: (device, inode) the path must still lead to when it is opened.
        offset: where in the file the RAMBlock begins, in bytes.
        user: the process that has it mapped or open, and where. The RAMBlock ends with that.
            None for a file by itself.
    """

    path: str
    inode: tuple[int, int]
    offset: int = 0
    user: ProcessMemory | None = None


@dataclass(frozen=True, eq=False)
class BufferMemory:
    """Bytes of a Python buffer of this process.

    Attributes:
        buffer: the bytes.
        anonymous: as of ProcessMemory.
    """

    buffer: memoryview
    anonymous: bool = False


@dataclass(frozen=True)
class RAMBlock:
    """One RAMBlock.

    Attributes:
        idstr: its name, QEMU's where that is known.
        used_length: bytes.
        memory: where the bytes are.
        page_size: bytes of the pages that back it: 4096, or a huge page's.
    """

    idstr: str
    used_length: int
    memory: FileMemory | ProcessMemory | BufferMemory
    page_size: int = 4096

    def __str__(self) -> str:
        return f"{self.idstr} ({format_size(self.used_length)})"
