# SPDX-License-Identifier: MIT
"""Readers: how the pages of one RAMBlock are read without changing anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pysampler.errors import FaultError, SourceError
from pysampler.ramblock import BufferMemory, FileMemory, RAMBlock
from pysampler.reader.buffer import BufferReader
from pysampler.reader.file import FileReader
from pysampler.reader.process import ProcessReader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pysampler.core import HashArray, Hasher, StateArray, VfnArray


class Reader(Protocol):
    """Reads pages of one RAMBlock; ``states`` and ``hash_pages`` may run in several threads."""

    @property
    def access(self) -> str:
        """How pages are read: ``mapped``, ``pread``, ``process_vm_readv`` or ``buffer``."""

    def begin_pass(self) -> None:
        """Look once at what holds for a whole pass.

        Raises:
            FaultError: the block has gone or shrunk.
        """

    def states(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray | None:
        """Return which pages can be read now; None when all can. ``order`` sorts ``vfns``."""

    def hash_pages(self, hasher: Hasher, vfns: VfnArray, hashes: HashArray) -> int:
        """Hash pages in order; return how many were: fewer when the next cannot be read.

        Raises:
            FaultError: the block has gone.
        """

    def copy_page(self, vfn: int) -> bytes:
        """Return a page that ``states`` calls present; shorter when it cannot be read any more.

        Raises:
            FaultError: the block has gone.
        """

    def end_pass(self) -> None:
        """Make sure that what was read was still the block.

        Raises:
            FaultError: the block has gone or shrunk.
        """

    def close(self) -> None:
        """Let go of maps and descriptors; a second call does nothing."""


def open_reader(block: RAMBlock, page_size: int) -> Reader:
    """Return a reader of a RAMBlock.

    Raises:
        SourceError: the block cannot be read; the message says why and what cures it.
    """
    if isinstance(block.memory, BufferMemory):
        return BufferReader(block, block.memory, page_size)
    if isinstance(block.memory, FileMemory):
        try:
            return FileReader(block, block.memory, page_size)
        except FaultError as error:
            raise SourceError(str(error)) from error
        except (OSError, ValueError) as error:
            raise SourceError(f"{block.memory.path}: {error}") from error
    if block.memory.address is None:
        raise SourceError(f"RAMBlock {block} has no address")
    return ProcessReader(block, block.memory, block.memory.address, page_size)
