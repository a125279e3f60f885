# SPDX-License-Identifier: MIT
"""Finding RAMBlocks: in files, processes, QEMU's guest RAM and Python buffers."""

from pysampler.source.buffer import buffer_block
from pysampler.source.file import file_block, process_fd_block
from pysampler.source.process import find_blocks, named_block

__all__ = ["buffer_block", "file_block", "find_blocks", "named_block", "process_fd_block"]
