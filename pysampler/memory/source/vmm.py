# SPDX-License-Identifier: MIT
"""Guest RAM of a process that is no QEMU, as far as its mappings tell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.host.maps import is_device
from pysampler.memory.source.file import block_name
from pysampler.printable import printable
from pysampler.qemu.dirty_rate import MIN_USED_LENGTH
from pysampler.units import MIB, format_size

if TYPE_CHECKING:
    from pysampler.host.maps import Mapping

# What a process of unknown kind must have mapped in one piece to be taken for guest RAM.
MIN_FOUND_LENGTH = 16 * MIB

# QEMU's name for the memfds of memory-backend-memfd. Others that want to be found use it too.
_GUEST_MEMFD = "memory-backend-memfd"

_N_REASONS = 4  # mappings that an error speaks of


def largest(mappings: list[Mapping]) -> list[tuple[str, Mapping]]:
    """Return the mappings that are taken for guest RAM, each with a name.

    Private mappings of memfds and files are among them, because a VMM that was restored from a
    snapshot maps its file so.
    """
    programs = _programs(mappings)
    memfds = [m for m in mappings if _is_guest_memfd(m) and _why_no_memory(m, programs) is None]
    found = [m for m in memfds if m.length >= MIN_USED_LENGTH] or [
        m for m in mappings if m.length >= MIN_FOUND_LENGTH and _why_no_memory(m, programs) is None
    ]
    # A file that is mapped twice is one block; what is private is not the same twice.
    once = {(m.inode, m.offset) if m.shared else m.start: m for m in reversed(found)}
    return [(_name_of(m), m) for m in sorted(once.values(), key=lambda m: m.start)]


def why_not(mappings: list[Mapping]) -> str:
    """Return the largest mappings, each with the reason why it is not taken for guest RAM."""
    if not mappings:
        return "a kernel thread or a process that has ended has no memory"
    programs = _programs(mappings)
    seen = sorted((m for m in mappings if m.accessible), key=lambda m: (m.executable, -m.length))[
        :_N_REASONS
    ]
    reasons = "; ".join(
        f"{printable(m.name) or 'anonymous memory'} at {m.start:#x} ({format_size(m.length)})"
        f" {_why_no_memory(m, programs) or f'is shorter than {format_size(MIN_FOUND_LENGTH)}'}"
        for m in seen
    )
    return f"{reasons}; name one with --block"


def _programs(mappings: list[Mapping]) -> set[tuple[int, int]]:
    return {m.inode for m in mappings if m.executable and m.inode != (0, 0)}


def _is_guest_memfd(mapping: Mapping) -> bool:
    return mapping.name.startswith("/memfd:") and block_name(mapping.name).startswith(_GUEST_MEMFD)


def _why_no_memory(mapping: Mapping, programs: set[tuple[int, int]]) -> str | None:
    """Return why a mapping is no guest RAM, however long it is; None when it may be."""
    if mapping.executable:
        return "is executable"
    if not mapping.writable:
        return "is not writable"
    if mapping.inode in programs:
        return "is data of a program"
    if mapping.name.startswith(("[stack", "[vdso", "[vvar")):
        return "is no memory of a guest"
    if is_device(mapping):
        return "is a device"
    return None


def _name_of(mapping: Mapping) -> str:
    if mapping.inode == (0, 0):
        return f"{mapping.name.strip('[]') or 'anon'}@{mapping.start:x}"
    name = block_name(mapping.name)
    return name.removeprefix(f"{_GUEST_MEMFD}:") or name
