# SPDX-License-Identifier: MIT
"""Processes and files that the readers of one measurement share: each is opened once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pysampler.errors import SourceError
from pysampler.host.rights import process_error
from pysampler.memory.reader.descriptor import Descriptor
from pysampler.memory.reader.process_view import ProcessView

if TYPE_CHECKING:
    from pysampler.memory.ramblock import FileMemory


class Opened:
    """Processes and files that readers have opened."""

    def __init__(self) -> None:
        self._processes: dict[int, ProcessView] = {}
        self._files: dict[tuple[int, int], Descriptor] = {}

    def process(self, pid: int) -> ProcessView:
        """Return the view of a process.

        Raises:
            SourceError: there is no such process, or it may not be read.
        """
        if pid not in self._processes:
            try:
                self._processes[pid] = ProcessView(pid)
            except (PermissionError, ProcessLookupError, FileNotFoundError) as error:
                raise process_error(error, pid) from error
        return self._processes[pid]

    def file(self, memory: FileMemory) -> Descriptor:
        """Return the file of a RAMBlock.

        Raises:
            OSError: it cannot be opened.
            SourceError: the path leads to another file by now.
        """
        if memory.inode not in self._files:
            file = Descriptor(memory.path)
            status = os.fstat(file.fd)
            if (status.st_dev, status.st_ino) != memory.inode:
                file.close()
                raise SourceError(f"{memory.path}: not the file any more that was found; try again")
            self._files[memory.inode] = file
        return self._files[memory.inode]

    def close(self) -> None:
        """Close everything; a second call does nothing."""
        for process in self._processes.values():
            process.close()
        for file in self._files.values():
            file.close()
