# SPDX-License-Identifier: MIT
"""Memory on a QEMU's command line: names, kinds and sizes, as far as they are there.

The text belongs to another process and may be anything. Options that make no sense are ignored.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Option = tuple[str, dict[str, str]]  # its name and what it says

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
_IDSTR_OF_MACHINE = {"microvm": "microvm.ram", "none": "ram"}

# The property that the first word of an option's value stands for.
_IMPLIED = {
    "object": "qom-type",
    "machine": "type",
    "m": "size",
    "device": "driver",
    "numa": "type",
}
_SAME_OPTION = {"M": "machine", "memory": "m"}

_VIDEO_DEVICES = {
    "std": "VGA", "qxl": "qxl-vga", "vmware": "vmware-svga", "cirrus": "cirrus-vga",
}  # fmt: skip
# Devices with video RAM: its idstr, its usual length in MiB, and the properties that set another,
# each with the bytes that its plain number counts.
_VIDEO_RAM = {
    "VGA": [("vga.vram", 16, {"vgamem_mb": MIB})],
    "secondary-vga": [("vga.vram", 16, {"vgamem_mb": MIB})],
    "isa-vga": [("vga.vram", 8, {"vgamem_mb": MIB})],
    "cirrus-vga": [("vga.vram", 4, {"vgamem_mb": MIB})],
    "isa-cirrus-vga": [("vga.vram", 4, {"vgamem_mb": MIB})],
    "ati-vga": [("vga.vram", 16, {"vgamem_mb": MIB})],
    "vmware-svga": [("vga.vram", 16, {"vgamem_mb": MIB})],
    "bochs-display": [("bochs-display-vram", 16, {"vgamem": 1})],
    "qxl-vga": [
        ("vga.vram", 64, {"ram_size": 1, "ram_size_mb": MIB}),
        ("qxl.vram", 64, {"vram_size": 1, "vram_size_mb": MIB, "vram64_size_mb": MIB}),
    ],
    "qxl": [
        ("qxl.vgavram", 64, {"ram_size": 1, "ram_size_mb": MIB}),
        ("qxl.vram", 64, {"vram_size": 1, "vram_size_mb": MIB, "vram64_size_mb": MIB}),
    ],
}

_SIZE = re.compile(r"(\d{1,20})(\.\d{1,20})?([bkmgtpe]?)", re.ASCII | re.IGNORECASE)
_HEXADECIMAL = re.compile(r"0[xX]([0-9a-fA-F]{1,16})", re.ASCII)
_SIZE_MAX = 1 << 63
_M_ALIGNMENT = 8192  # -m is rounded up to this


@dataclass(frozen=True)
class ConfiguredMemory:
    """Memory that the command line asks for.

    Attributes:
        idstr: the RAMBlock's name, without the path of its device.
        length: bytes; 0 when the command line does not give it.
        kind: ``ram``, ``memfd``, ``shm`` or ``file``.
        shared: whether writes reach the file, or other processes.
        path: of a file backend: the file, or the folder in which QEMU makes one.
        offset: of a file backend: where in the file it begins, in bytes.
        is_default: it is what ``-m`` asks for, of no backend.
        is_video: it is a device's, and no part of what ``-m`` says.
    """

    idstr: str
    length: int
    kind: str = "ram"
    shared: bool = False
    path: str = ""
    offset: int = 0
    is_default: bool = False
    is_video: bool = False


def configured_memory(
    command: list[str], program: str, read_config: Callable[[str], str] = lambda _: ""
) -> list[ConfiguredMemory]:
    """Return the memory that a QEMU's command line asks for: main memory and backends, then video.

    Args:
        command: the command line.
        program: the name of the executable, which tells the architecture.
        read_config: returns the text of a file of ``-readconfig``; empty when it cannot be had.
    """
    options = list(_options(command, read_config))
    configured = [
        backend for name, text in options if name == "object" for backend in _backend(text)
    ]
    machine: dict[str, str] = {}
    for name, text in options:
        if name == "machine":
            machine.update(text)
    nodes = [text for name, text in options if name == "numa"]
    if "memory-backend" not in machine and not any("memdev" in text for text in nodes):
        configured.insert(0, _main_memory(options, machine, program))
    return configured + [memory for memory in _video(options) if memory.length >= 16 * MIB]


def _main_memory(options: list[Option], machine: dict[str, str], program: str) -> ConfiguredMemory:
    size = next(
        (text["size"] for name, text in reversed(options) if "size" in text and name == "m"), ""
    )
    length = _round_up(_size(size, MIB), _M_ALIGNMENT)
    length = length or _round_up(_size(machine.get("memory.size", ""), 1), _M_ALIGNMENT)
    path = next((text[""] for name, text in options if name == "mem-path" and "" in text), "")
    idstr = _IDSTR_OF_MACHINE.get(machine.get("type", "")) or next(
        (idstr for word, idstr in _DEFAULT_IDSTR.items() if re.search(rf"-{word}\b", program)), ""
    )
    if not idstr:  # qemu-kvm, kvm
        idstr = _DEFAULT_IDSTR.get(os.uname().machine, "ram")
    return ConfiguredMemory(idstr, length, "file" if path else "ram", path=path, is_default=True)


def _backend(text: dict[str, str]) -> Iterator[ConfiguredMemory]:
    kind = text.get("qom-type", "")
    if kind.startswith("memory-backend-") and text.get("id"):
        kind = kind.removeprefix("memory-backend-")
        share = text.get("share", "").lower()
        yield ConfiguredMemory(
            text["id"],
            _round_up(_size(text.get("size", ""), 1), PAGE_SIZE),
            kind,
            shared=share in {"on", "yes", "true", "y"} or (not share and kind in {"memfd", "shm"}),
            path=text.get("mem-path", ""),
            offset=_size(text.get("offset", ""), 1),
        )


def _video(options: list[Option]) -> Iterator[ConfiguredMemory]:
    named = [text.get("", "") for name, text in options if name == "vga"]
    devices = [{"driver": _VIDEO_DEVICES.get(name, "")} for name in named]
    devices += [text for name, text in options if name == "device"]
    if not any(device.get("driver") in _VIDEO_RAM for device in devices) and not (
        named or any(name == "nodefaults" for name, _ in options)
    ):
        devices.append({"driver": "VGA"})
    of_driver, of_id = _set_apart(options)
    for named_so in devices:
        device = {
            **of_driver[named_so.get("driver", "")],
            **named_so,
            **of_id[named_so.get("id", "")],
        }
        for idstr, mib, properties in _VIDEO_RAM.get(device.get("driver", ""), []):
            lengths = [
                _size(device[key], unit) for key, unit in properties.items() if key in device
            ]
            yield ConfiguredMemory(idstr, max(lengths, default=mib * MIB), is_video=True)


def _set_apart(
    options: list[Option],
) -> tuple[defaultdict[str, dict[str, str]], defaultdict[str, dict[str, str]]]:
    """Return the settings of -global by driver, and of -set by id."""
    of_driver: defaultdict[str, dict[str, str]] = defaultdict(dict)
    of_id: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for option, text in options:
        if option == "global" and "driver" in text:
            of_driver[text["driver"]][text.get("property", "")] = text.get("value", "")
            continue
        for key, value in text.items():
            first, _, rest = key.partition(".")
            if option == "global":
                of_driver[first][rest] = value
            elif option == "set" and first == "device":
                name, _, member = rest.partition(".")
                of_id[name][member] = value
    return of_driver, of_id


def _options(command: list[str], read_config: Callable[[str], str]) -> Iterator[Option]:
    """Yield each option and its value; without a value, the next option stands in its place."""
    for word, value in zip(command[1:], [*command[2:], ""], strict=True):
        if not word.startswith("-"):
            continue
        name = word.lstrip("-")
        name = _SAME_OPTION.get(name, name)
        if name == "readconfig":
            yield from _config(read_config(value))
        else:
            yield name, _properties(value, _IMPLIED.get(name, ""))


def _config(text: str) -> Iterator[Option]:
    """Yield the options of a file of -readconfig."""
    option: Option | None = None
    for line in text.splitlines():
        section = re.match(r'\s*\[\s*([\w-]+)(?:\s+"([^"]*)")?\s*\]', line)
        member = re.match(r'\s*([\w.-]+)\s*=\s*"([^"]*)"', line)
        if section:
            if option:
                yield option
            name = _SAME_OPTION.get(section[1], section[1])
            option = (name, {"id": section[2]} if section[2] else {})
        elif member and option:
            option[1][member[1]] = member[2]
    if option:
        yield option


def _properties(text: str, implied: str) -> dict[str, str]:
    """Return the members of ``first,key=value,...`` or of a JSON object, as text."""
    if text.startswith("{"):
        try:
            members: dict[str, Any] = json.loads(text)
            return {key: _as_text(value) for key, value in members.items()}
        except (ValueError, RecursionError):  # no JSON, numbers too long or nested too deeply
            return {}
    properties = {}
    # A doubled comma stands for a comma in a value.
    for i, part in enumerate(re.split(r",(?!,)", text.replace(",,", "\0"))):
        key, equals, value = part.replace("\0", ",").partition("=")
        if equals:
            properties[key] = value
        elif i == 0:
            properties[implied] = key
    return properties


def _as_text(value: object) -> str:
    # What is nested says nothing of memory.
    return str(value) if isinstance(value, (str, int, float)) else ""


def _size(text: str, unit: int) -> int:
    """Return bytes, 0 for a text that is no size; a bare number counts ``unit`` bytes."""
    hexadecimal = _HEXADECIMAL.fullmatch(text)
    match = _SIZE.fullmatch(text)
    if hexadecimal:
        size = int(hexadecimal[1], 16) * unit
    elif match:
        whole, fraction, suffix = match.groups()
        factor = 1 << 10 * "bkmgtpe".index(suffix.lower()) if suffix else unit
        size = int(Fraction(whole + (fraction or "")) * factor)
    else:
        return 0
    return size if size < _SIZE_MAX else 0


def _round_up(length: int, alignment: int) -> int:
    return -(-length // alignment) * alignment
