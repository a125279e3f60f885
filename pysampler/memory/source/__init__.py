# SPDX-License-Identifier: MIT
"""Finding RAMBlocks: in files, processes, QEMU's guest RAM and Python buffers."""

from pysampler.memory.source.buffer import buffer_block
from pysampler.memory.source.file import file_block, process_fd_block
from pysampler.memory.source.find import FoundRam, find_blocks, find_ram
from pysampler.memory.source.process import named_block

__all__ = [
    "FoundRam",
    "buffer_block",
    "file_block",
    "find_blocks",
    "find_ram",
    "named_block",
    "process_fd_block",
]
