# SPDX-License-Identifier: MIT
"""A Python buffer as a RAMBlock."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from pysampler import core
from pysampler.errors import SourceError, UsageError
from pysampler.host.maps import read_maps
from pysampler.memory.ramblock import BufferMemory, FileMemory, RAMBlock
from pysampler.memory.source.process import mapped_block
from pysampler.qemu.dirty_rate import PAGE_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer


def buffer_block(buffer: Buffer, idstr: str = "buffer") -> RAMBlock:
    """Return any Python buffer as a RAMBlock: bytearray, mmap, numpy array, shared memory.

    The whole pages of it are sampled, counted from its first byte.

    Raises:
        UsageError: it is no contiguous buffer.
        SourceError: it has less than a page.
    """
    try:
        view = memoryview(buffer).cast("B")
    except (TypeError, ValueError, BufferError) as error:  # ValueError: datetime64, say
        raise UsageError(f"cannot sample {type(buffer).__name__}: {error}") from error
    used_length = len(view) // PAGE_SIZE * PAGE_SIZE
    if used_length == 0:
        raise SourceError(f"the buffer has {len(view)} bytes, less than a page")
    address, anonymous = core.address_of(view), False
    if address % os.sysconf("SC_PAGESIZE"):  # between other objects of the heap, all in use
        return RAMBlock(idstr, used_length, BufferMemory(view))
    for mapping in read_maps(os.getpid()):
        if mapping.start <= address and address + used_length <= mapping.end:
            anonymous = mapping.is_anonymous
            if mapping.shared:
                # The file of a shared mapping tells holes from data; the mapping does not.
                block = mapped_block(os.getpid(), mapping, idstr, start=address, length=used_length)
                if isinstance(block.memory, FileMemory):
                    # This process need not be watched.
                    return replace(block, memory=replace(block.memory, user=None))
    return RAMBlock(idstr, used_length, BufferMemory(view, anonymous))
