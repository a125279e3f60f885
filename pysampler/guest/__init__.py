# SPDX-License-Identifier: MIT
"""The emulated guest: RAM in memfds, vCPUs that write it in a known pattern, the truth of it."""

from pysampler.guest.guest import Guest, VcpuInfo
from pysampler.guest.phases import Phases
from pysampler.guest.ram import Block, BlockSpec, Content, allocate
from pysampler.guest.workload import Workload

__all__ = [
    "Block",
    "BlockSpec",
    "Content",
    "Guest",
    "Phases",
    "VcpuInfo",
    "Workload",
    "allocate",
]
