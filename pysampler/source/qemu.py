# SPDX-License-Identifier: MIT
"""Guest RAM of a QEMU: which of its mappings are RAMBlocks, and their idstr.

The command line names the memory backends and their sizes, the mappings tell where memory of
such a size is. Nothing is asked of QEMU itself: it may be stopped, hung or busy migrating.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pysampler.errors import UsageError
from pysampler.units import MIB, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pysampler.source.maps import Mapping

# qemu_anon_ram_alloc() aligns anonymous RAM to this, for transparent huge pages, and has a guard
# page after it (QEMU_VMALLOC_ALIGN on x86, Arm and s390, qemu_ram_mmap()).
_ALIGNMENT = 2 * MIB
_VRAM_LENGTH = 16 * MIB

_DEFAULT_RAM_MIB = 128

# -m without a backend: the machine's default_ram_id.
_DEFAULT_IDSTR = {
    "x86_64": "pc.ram",
    "i386": "pc.ram",
    "aarch64": "mach-virt.ram",
    "arm": "mach-virt.ram",
    "riscv64": "riscv_virt_board.ram",
    "riscv32": "riscv_virt_board.ram",
    "ppc64": "ppc_spapr.ram",
    "s390x": "s390.ram",
}


@dataclass(frozen=True)
class _Backend:
    """Memory that the command line asks for.

    Attributes:
        idstr: the RAMBlock's name.
        length: bytes.
        kind: ``ram``, ``memfd`` or ``file``.
        path: of a file backend: the file, or the folder in which QEMU makes one.
    """

    idstr: str
    length: int
    kind: str
    path: str = ""


def is_qemu(command: list[str]) -> bool:
    """Return whether a command line starts a QEMU system emulator."""
    return re.match(r"qemu-(system-|kvm)|kvm$", os.path.basename(command[0])) is not None


def find_guest_ram(command: list[str], mappings: list[Mapping]) -> list[tuple[str, Mapping]]:
    """Return idstr and mapping of each RAMBlock of guest memory, guest RAM first.

    Backends of one kind and size are told apart by the order in which QEMU makes them: inode
    numbers of memfds rise, addresses of anonymous memory fall.
    """
    free = [m for m in mappings if m.writable and not m.executable]
    shared = sorted((m for m in free if m.inode != (0, 0)), key=lambda m: m.inode[1])
    private = sorted(_anonymous_ram(mappings), key=lambda m: -m.start)
    found: list[tuple[str, Mapping]] = []
    for backend in _backends(command):
        if backend.length == 0:  # a size we cannot read
            continue
        pool = private if backend.kind == "ram" else shared
        mapping = next((m for m in pool if _fits(backend, m)), None)
        if mapping is None and backend.kind == "ram":
            mapping = _end_of_larger(backend.length, mappings)
        if mapping is not None:
            found.append((backend.idstr, mapping))
            pool[:] = [m for m in pool if not _overlap(m, mapping)]
    # What remains and looks like QEMU's RAM: video RAM, or memory that was plugged in later.
    for mapping in private:
        if mapping.length == _VRAM_LENGTH:
            found.append(("vga.vram", mapping))
        elif mapping.length > _VRAM_LENGTH:
            found.append((f"ram@{mapping.start:x}", mapping))
    found += [
        (f"memfd@{mapping.start:x}", mapping)
        for mapping in shared
        if mapping.shared and "memory-backend-memfd" in mapping.name
    ]
    return found


def _fits(backend: _Backend, mapping: Mapping) -> bool:
    if mapping.length != backend.length:
        return False
    if backend.kind == "memfd":
        return "memory-backend-memfd" in mapping.name
    if backend.kind == "file":
        path = mapping.name.removesuffix(" (deleted)")
        return path == backend.path or os.path.dirname(path) == backend.path.rstrip("/")
    return True


def _overlap(one: Mapping, other: Mapping) -> bool:
    return one.start < other.end and other.start < one.end


def _anonymous_ram(mappings: list[Mapping]) -> Iterator[Mapping]:
    """Yield anonymous memory as QEMU allocates it: aligned, and with a guard page after it."""
    host_page = os.sysconf("SC_PAGESIZE")
    for start_at, first in enumerate(mappings):
        if first.start % _ALIGNMENT or not _is_anonymous(first):
            continue
        # A NUMA policy or advice on a part of it splits it into several mappings.
        end = first.start
        for mapping in mappings[start_at:]:
            if mapping.start != end or not _is_anonymous(mapping):
                is_guard = (
                    mapping.start == end and not mapping.accessible and mapping.length == host_page
                )
                if is_guard:
                    yield replace(first, end=end)
                break
            end = mapping.end


def _end_of_larger(length: int, mappings: list[Mapping]) -> Mapping | None:
    """Return the last ``length`` bytes before a guard page.

    The kernel joins neighbours of the same kind, so guest RAM may be the end of a larger mapping.
    """
    for mapping, following in pairwise(mappings):
        start = mapping.end - length
        if (
            _is_anonymous(mapping)
            and start >= mapping.start
            and start % _ALIGNMENT == 0
            and following.start == mapping.end
            and not following.accessible
        ):
            return replace(mapping, start=start)
    return None


def _is_anonymous(mapping: Mapping) -> bool:
    return (
        mapping.writable
        and not mapping.executable
        and not mapping.shared
        and mapping.inode == (0, 0)
        and (not mapping.name or mapping.name.startswith("[anon"))
    )


def _backends(command: list[str]) -> list[_Backend]:
    """Return the memory that a QEMU command line asks for, in its order."""
    options = list(_options(command))
    backends = [
        _Backend(
            properties["id"],
            _size(properties.get("size"), "B"),
            properties["qom-type"].removeprefix("memory-backend-"),
            properties.get("mem-path", ""),
        )
        for name, value in options
        if name == "object"
        for properties in [_properties(value, "qom-type")]
        if properties.get("qom-type", "").startswith("memory-backend-") and "id" in properties
    ]
    uses_backends = any(
        "memdev" in _properties(value, "type") for name, value in options if name == "numa"
    ) or any(
        "memory-backend" in _properties(value, "type")
        for name, value in options
        if name in {"machine", "M"}
    )
    if not uses_backends:
        memory = next((value for name, value in reversed(options) if name == "m"), "")
        length = _size(_properties(memory, "size").get("size"), "M") or _DEFAULT_RAM_MIB * MIB
        mem_path = next((value for name, value in options if name == "mem-path"), "")
        kind = "file" if mem_path else "ram"
        backends.insert(0, _Backend(_default_idstr(command[0]), length, kind, mem_path))
    return backends


def _options(command: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (option, value) pairs; an option without a value is followed by the next option."""
    for word, value in zip(command[1:], [*command[2:], ""], strict=True):
        if word.startswith("-"):
            yield word.lstrip("-"), value


def _properties(text: str, implied: str) -> dict[str, str]:
    """Return the members of ``first,key=value,...`` or of a JSON object, as text."""
    if text.startswith("{"):
        try:
            members: dict[str, Any] = json.loads(text)
        except ValueError:
            return {}
        return {key: str(value) for key, value in members.items()}
    properties = {}
    # A doubled comma stands for a comma in a value.
    for i, part in enumerate(re.split(r",(?!,)", text.replace(",,", "\0"))):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            properties[key] = value
        elif i == 0:
            properties[implied] = key
    return properties


def _size(text: str | None, default_suffix: str) -> int:
    """Return bytes; a bare number of ``-m`` is in MiB, one of a backend in bytes."""
    try:
        return parse_size(
            text + default_suffix.strip("B") if text and text.isdecimal() else text or "0"
        )
    except UsageError:
        return 0


def _default_idstr(program: str) -> str:
    return _DEFAULT_IDSTR.get(os.path.basename(program).rpartition("-")[2], "ram")
