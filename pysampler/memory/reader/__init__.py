# SPDX-License-Identifier: MIT
"""Readers: how the pages of one RAMBlock are read without changing anything."""

from __future__ import annotations

import errno
import resource
from typing import TYPE_CHECKING, Protocol

from pysampler.errors import FaultError, SourceError
from pysampler.memory.ramblock import BufferMemory, FileMemory, RAMBlock
from pysampler.memory.reader.buffer import BufferReader
from pysampler.memory.reader.file import FileReader
from pysampler.memory.reader.opened import Opened
from pysampler.memory.reader.process import ProcessReader

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
        """Take the observations that hold for a whole pass.

        Raises:
            FaultError: the block has gone or shrunk.
        """

    def states(self, vfns: VfnArray, order: NDArray[np.uint32]) -> StateArray | None:
        """Return which pages can be read now; None when all can. ``order`` sorts ``vfns``."""

    def hash_pages(self, hasher: Hasher, vfns: VfnArray, hashes: HashArray) -> int:
        """Hash pages in order; return their number, which is smaller when the next cannot be read.

        Raises:
            FaultError: the block has gone.
        """

    def copy_page(self, vfn: int) -> bytes:
        """Return a page that ``states`` calls present; shorter when it cannot be read any more.

        Raises:
            FaultError: the block has gone.
        """

    def check(self) -> None:
        """Check quickly whether the whole block has gone; called for each page that cannot be read.

        Raises:
            FaultError: the process has ended, or the file has shrunk.
        """

    def end_pass(self) -> None:
        """Check that the block was still the same while it was read.

        Raises:
            FaultError: the block has gone or shrunk.
        """

    def close(self) -> None:
        """Close mappings and descriptors; a second call does nothing."""


def open_reader(block: RAMBlock, page_size: int, opened: Opened | None = None) -> Reader:
    """Return a reader of a RAMBlock.

    Args:
        block: the RAMBlock.
        page_size: bytes of the pages to read.
        opened: what other readers of the same measurement have opened; the caller closes it.

    Raises:
        SourceError: the block cannot be read; the message says why and what cures it.
    """
    opened = Opened() if opened is None else opened
    try:
        if isinstance(block.memory, BufferMemory):
            return BufferReader(block, block.memory, page_size, opened)
        if isinstance(block.memory, FileMemory):
            return FileReader(block, block.memory, page_size, opened)
        if block.memory.address is None:
            raise SourceError(f"RAMBlock {block} has no address")
        return ProcessReader(block, block.memory, block.memory.address, page_size, opened)
    except FaultError as error:
        raise SourceError(str(error)) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.EMFILE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise SourceError(
                f"RAMBlock {block.idstr} cannot be opened, for this process may have {limit} files"
                " open at once and each RAMBlock with a file of its own takes one: raise"
                " `ulimit -n`"
            ) from error
        where = block.memory.path if isinstance(block.memory, FileMemory) else f"RAMBlock {block}"
        raise SourceError(f"{where}: {error}") from error
