# SPDX-License-Identifier: MIT
"""RAMBlocks found in a QEMU, corrected by the answer of its monitor."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace
from typing import TYPE_CHECKING

from pysampler.errors import SourceError
from pysampler.host.maps import is_mapped
from pysampler.memory.source.qemu import has_length
from pysampler.memory.source.vmm import MIN_FOUND_LENGTH
from pysampler.units import format_size

if TYPE_CHECKING:
    from pysampler.host.maps import Mapping
    from pysampler.memory.source.monitor import ToldBlock


def as_qemu_says(
    told: list[ToldBlock], found: list[tuple[str, Mapping]], mappings: list[Mapping]
) -> tuple[list[tuple[str, Mapping]], list[str]]:
    """Return the blocks that QEMU names, and remarks.

    QEMU's address decides where a block is. Without an address, length and name decide which of
    the blocks found it is.

    Raises:
        SourceError: none of them is there.
    """
    blocks: list[tuple[str, Mapping]] = []
    missing: list[str] = []
    left = list(found)
    # Those of the same name first: then those that only a length tells get what is left.
    names = {name for name, _ in found}
    for block in sorted(told, key=lambda block: block.idstr not in names):
        mapping = _at(block, mappings) if block.address is not None else _like(block, left)
        if mapping is None:
            missing.append(f"{block.idstr} ({format_size(block.used_length)})")
            continue
        left = [item for item in left if item[1].start != mapping.start]
        blocks.append((block.idstr, mapping))
    if not blocks:
        what = ", ".join(missing[:8]) or f"none of {format_size(MIN_FOUND_LENGTH)} or more"
        raise SourceError(
            f"the RAMBlocks that its QMP socket tells of are not in its memory: {what};"
            " is it the socket of another QEMU?"
        )
    remarks = []
    if missing:
        remarks.append(f"not found in its memory, though QEMU has it: {', '.join(missing[:8])}")
    if left:
        others = ", ".join(f"{name} ({format_size(m.length)})" for name, m in left[:8])
        remarks.append(f"not sampled, since it is no RAMBlock that QEMU migrates: {others}")
    return blocks, remarks


def _at(block: ToldBlock, mappings: list[Mapping]) -> Mapping | None:
    """Return the part of a mapping at which QEMU has a block."""
    start, end = block.address or 0, (block.address or 0) + block.used_length
    from_here = bisect_right(mappings, start, key=lambda m: m.end)
    spanned = mappings[from_here : bisect_left(mappings, end, key=lambda m: m.start)]
    if not is_mapped(spanned, start, block.used_length):
        return None
    first = spanned[0]
    if any((m.inode, m.shared) != (first.inode, first.shared) for m in spanned):
        return None
    return replace(first, start=start, end=end, offset=first.offset + start - first.start)


def _like(block: ToldBlock, left: list[tuple[str, Mapping]]) -> Mapping | None:
    fitting = [m for name, m in left if name == block.idstr and has_length(m, block.used_length)]
    fitting += [m for _, m in left if has_length(m, block.used_length)]
    if not fitting:
        return None
    return replace(fitting[0], end=fitting[0].start + block.used_length)
