# SPDX-License-Identifier: MIT
"""Guest RAM of a QEMU: which of its mappings are RAMBlocks, and their idstr.

The mappings give address and length of RAM, the command line its names. QEMU itself is not asked:
it may be stopped, hung or busy migrating.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pysampler.host.maps import is_device
from pysampler.units import GIB, MIB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pysampler.host.maps import Mapping
    from pysampler.memory.source.qemu_options import ConfiguredMemory

# qemu_anon_ram_alloc() aligns anonymous RAM to this, for transparent huge pages, and has a guard
# page after it (QEMU_VMALLOC_ALIGN on x86, Arm and s390, qemu_ram_mmap()).
_ALIGNMENT = 2 * MIB

# What the command line does not name must be this long to be taken for guest RAM.
MIN_UNNAMED_LENGTH = 16 * MIB

# QEMU's name for the memfds of memory-backend-memfd, and the beginning of the name of a file that
# it makes in a folder; the name of the backend and random letters follow.
_MEMFD = "memory-backend-memfd"
_MADE_FILE = re.compile(r"qemu_back_mem\.(.+)\.\w+", re.ASCII)

# MADV_DONTFORK, which ram_block_add() gives to each RAMBlock, and nothing else in QEMU.
_RAM_FLAG = "dc"

# Other shared memory of QEMU's, where flags cannot tell: pictures of displays.
_NO_RAM = {"displaysurface"}

_PROGRAM = re.compile(r"\.?(qemu-system-|qemu-kvm|kvm(-spice)?$)")


@dataclass(frozen=True)
class QemuRam:
    """The guest RAM found in a QEMU.

    Attributes:
        named: idstr and mapping of each RAMBlock that the command line names, main memory first.
        unnamed: the same for mappings that look like a RAMBlock and are not on the command line.
        configured_bytes: guest RAM that the command line asks for; 0 when it does not give the
            size of all of it.
        missing: memory of the command line that was not found.
        video: bytes of ``named`` that are devices'.
    """

    named: list[tuple[str, Mapping]]
    unnamed: list[tuple[str, Mapping]]
    configured_bytes: int
    missing: list[ConfiguredMemory]
    video: int

    @property
    def is_doubtful(self) -> bool:
        """Whether command line and mappings disagree."""
        return bool(self.unnamed or self.missing or not self.configured_bytes)

    def remarks(self) -> Iterator[str]:
        """Yield warnings for the user, a line each."""
        if self.unnamed:
            names = ", ".join(f"{idstr} ({format_size(m.length)})" for idstr, m in self.unnamed[:8])
            more = f" and {len(self.unnamed) - 8} more" if len(self.unnamed) > 8 else ""
            yield (
                f"taken for guest RAM, but not explained by QEMU's command line: {names}{more};"
                " plugged in later, or a device's"
            )
        found = sum(m.length for _, m in self.named + self.unnamed) - self.video
        if self.configured_bytes and found != self.configured_bytes:
            yield (
                f"QEMU's command line says {format_size(self.configured_bytes)} of guest RAM,"
                f" {format_size(found)} were found"
            )


def is_qemu(command: list[str], executable: str | None = None) -> bool:
    """Return whether a process is a QEMU system emulator.

    The executable decides. The command line may say anything, so it decides only where the
    executable is unknown.
    """
    program = command[0] if executable is None else executable.removesuffix(" (deleted)")
    return _PROGRAM.match(os.path.basename(program)) is not None


def match_guest_ram(configured: list[ConfiguredMemory], mappings: list[Mapping]) -> QemuRam:
    """Find the memory of the command line, and other guest RAM.

    Memory of one kind and size is told apart by the order in which QEMU makes it, backends before
    what is of none: inode numbers rise, addresses of anonymous memory fall.
    """
    pool = _candidates(mappings)
    found: dict[int, Mapping] = {}
    # Those with a size first, so that one without is not given what is another's.
    in_order = sorted(
        enumerate(configured), key=lambda item: (item[1].is_video, item[1].is_default)
    )
    for fits in (_fits, _is_end_of_larger, _is_unsized):
        for i, memory in in_order:
            mapping = None if i in found else fits(memory, pool, mappings)
            if mapping is not None:
                found[i] = mapping
                pool = [m for m in pool if not _overlap(m, mapping)]
    named = [(configured[i].idstr, found[i]) for i in sorted(found)]
    unnamed = [(_name_of(m), m) for m in pool if m.length >= MIN_UNNAMED_LENGTH and _is_ram(m)]
    main = [memory for memory in configured if not memory.is_video]
    return QemuRam(
        named,
        unnamed,
        configured_bytes=sum(memory.length for memory in main)
        if all(m.length for m in main)
        else 0,
        missing=[memory for i, memory in enumerate(configured) if i not in found],
        video=sum(found[i].length for i in found if configured[i].is_video),
    )


def has_length(mapping: Mapping, length: int) -> bool:
    """Return whether a mapping is that of a RAMBlock of a length.

    A file of huge pages is rounded up to one of them; the RAMBlock is not.
    """
    spare = mapping.length - length
    return spare == 0 or (
        mapping.inode != (0, 0)
        and any(0 < spare < huge and mapping.length % huge == 0 for huge in (2 * MIB, GIB))
    )


def _fits(memory: ConfiguredMemory, pool: list[Mapping], _: object) -> Mapping | None:
    """Return the mapping of the memory, by kind, name and length."""
    for mapping in pool:
        if memory.length and _may_be(memory, mapping) and has_length(mapping, memory.length):
            return replace(mapping, end=mapping.start + memory.length)
    return None


def _is_end_of_larger(
    memory: ConfiguredMemory, pool: list[Mapping], mappings: list[Mapping]
) -> Mapping | None:
    """Return the end of a run of anonymous memory, where flags do not tell where RAM begins.

    The kernel joins neighbours of the same kind, so that a thread's stack may be before RAM.
    """
    if memory.kind != "ram" or not memory.length or _have_flags(mappings):
        return None
    for run in _guarded_runs(mappings):
        start = run[-1].end - memory.length
        if run[0].start <= start < run[0].start + memory.length and start % _ALIGNMENT == 0:
            mapping = replace(run[0], start=start, end=run[-1].end)
            if all(m.end == mapping.end or not _overlap(m, mapping) for m in pool):
                return mapping
    return None


def _is_unsized(memory: ConfiguredMemory, pool: list[Mapping], _: object) -> Mapping | None:
    """Return the longest mapping that the memory may be."""
    if memory.length:
        return None
    return max((m for m in pool if _may_be(memory, m)), key=lambda m: m.length, default=None)


def _may_be(memory: ConfiguredMemory, mapping: Mapping) -> bool:
    """Return whether the kind and the name of a mapping are those of the memory."""
    name = os.path.basename(mapping.name.removesuffix(" (deleted)"))
    if memory.kind == "file":
        made = _MADE_FILE.fullmatch(name)
        is_made = made is not None and made[1] == memory.idstr.replace("/", "_")
        is_given = name == os.path.basename(memory.path) and mapping.offset == memory.offset
        return (is_made or is_given) and mapping.inode != (0, 0)
    if memory.kind == "memfd":
        return mapping.name.startswith("/memfd:") and name.removeprefix("memfd:") == _MEMFD
    if memory.kind == "shm":
        return name.startswith("qemu-") and mapping.shared
    if _is_anonymous(mapping):
        return not memory.shared
    # Shared anonymous memory; QEMU 9.2 and newer have a memfd of the block's own name for it.
    if mapping.name.startswith("/dev/zero"):
        return memory.shared
    return mapping.name.startswith("/memfd:") and name.removeprefix("memfd:") == memory.idstr


def _candidates(mappings: list[Mapping]) -> list[Mapping]:
    """Return the mappings that may be RAMBlocks, in the likely order of their making."""
    flagged = _have_flags(mappings)
    programs = {m.inode for m in mappings if m.executable}
    of_files: list[Mapping] = []
    for mapping in mappings:
        if mapping.inode == (0, 0) or mapping.inode in programs or not mapping.accessible:
            continue
        if flagged and not _is_flagged(mapping):
            continue
        last = of_files[-1] if of_files else None
        if (
            last is not None
            and (last.end, last.inode, last.shared)
            == (mapping.start, mapping.inode, mapping.shared)
            and mapping.offset == last.offset + last.length
        ):  # a policy or advice for a part has split it
            of_files[-1] = replace(last, end=mapping.end)
        else:
            of_files.append(mapping)
    runs = _flagged_runs(mappings) if flagged else _guarded_runs(mappings)
    private = [replace(_ram_of(run, flagged=flagged), end=run[-1].end) for run in runs]
    return [
        *sorted(
            (m for m in private if m.start % _ALIGNMENT == 0 or flagged), key=lambda m: -m.start
        ),
        # Of one file that is mapped twice, each is a RAMBlock.
        *sorted(of_files, key=lambda m: (m.inode[1], m.offset, -m.start)),
    ]


def _ram_of(run: list[Mapping], *, flagged: bool) -> Mapping:
    """Return the address at which the RAM at the end of a run begins.

    A policy or advice for a part of it splits RAM, so it need not be the last mapping.
    """
    starts = run if flagged else [m for m in reversed(run) if m.start % _ALIGNMENT == 0]
    return starts[0] if starts else run[-1]


def _guarded_runs(mappings: list[Mapping]) -> Iterator[list[Mapping]]:
    """Yield adjacent anonymous mappings that a guard page follows."""
    run: list[Mapping] = []
    for mapping in mappings:
        if run and run[-1].end != mapping.start:
            run = []
        if _is_anonymous(mapping):
            run.append(mapping)
            continue
        if run and not mapping.accessible:
            yield run
        run = []


def _flagged_runs(mappings: list[Mapping]) -> Iterator[list[Mapping]]:
    """Yield adjacent anonymous mappings with the flag of RAM; a guard page is between RAMBlocks."""
    run: list[Mapping] = []
    for mapping in mappings:
        if not (_is_anonymous(mapping) and _is_flagged(mapping)):
            continue
        if run and run[-1].end != mapping.start:
            yield run
            run = []
        run.append(mapping)
    if run:
        yield run


def _is_anonymous(mapping: Mapping) -> bool:
    return (
        mapping.writable
        and not mapping.executable
        and not mapping.shared
        and mapping.inode == (0, 0)
        and (not mapping.name or mapping.name.startswith("[anon"))
    )


def _have_flags(mappings: list[Mapping]) -> bool:
    return any(_is_flagged(m) for m in mappings)


def _is_flagged(mapping: Mapping) -> bool:
    return mapping.flags is not None and _RAM_FLAG in mapping.flags and "io" not in mapping.flags


def _is_ram(mapping: Mapping) -> bool:
    """Return whether a mapping that no option names may be guest RAM."""
    name = mapping.name.removesuffix(" (deleted)")
    is_known = name.startswith("/memfd:") and name.removeprefix("/memfd:") in _NO_RAM
    return mapping.writable and not is_known and not is_device(mapping)


def _overlap(one: Mapping, other: Mapping) -> bool:
    return one.start < other.end and other.start < one.end


def _name_of(mapping: Mapping) -> str:
    """Return a name for memory that no option names: the backend's, where its file has it."""
    if mapping.inode == (0, 0) or mapping.name.startswith("/dev/zero"):
        return f"ram@{mapping.start:x}"
    name = os.path.basename(mapping.name.removesuffix(" (deleted)")).removeprefix("memfd:")
    made = _MADE_FILE.fullmatch(name)
    if made:
        return made[1]
    return f"memfd@{mapping.start:x}" if name == _MEMFD else name
