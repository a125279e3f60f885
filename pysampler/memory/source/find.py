# SPDX-License-Identifier: MIT
"""The guest RAM of a running process, whatever runs in it."""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pysampler.errors import SourceError
from pysampler.host.maps import Mapping, read_maps
from pysampler.host.rights import process_error
from pysampler.host.smaps import read_smaps
from pysampler.memory.source.monitor import ask_ramblocks
from pysampler.memory.source.process import links_of, mapped_block
from pysampler.memory.source.qemu import QemuRam, is_qemu, match_guest_ram
from pysampler.memory.source.qemu_options import configured_memory
from pysampler.memory.source.qemu_truth import as_qemu_says
from pysampler.memory.source.vmm import largest, why_not
from pysampler.printable import printable

if TYPE_CHECKING:
    from pysampler.memory.ramblock import RAMBlock

_COMMAND_MAX = 2 << 20  # bytes; the kernel takes no longer one, but a process may show any
_CONFIG_MAX = 1 << 20
_IDSTR_MAX = 255  # characters, QEMU's


@dataclass(frozen=True)
class FoundRam:
    """The guest RAM found in a process.

    Attributes:
        blocks: RAMBlocks, each of its own name.
        remarks: warnings for the user, a line each.
    """

    blocks: list[RAMBlock]
    remarks: list[str]


def find_blocks(pid: int) -> list[RAMBlock]:
    """Find the guest RAM of a process.

    In a QEMU that is the memory that its command line names, and other mappings that look like
    RAMBlocks, such as video RAM. In any other process it is the memfds named as QEMU's, if there
    are any. Else it is each writable mapping of at least 16 MiB: shared, of a file or anonymous.

    Raises:
        SourceError: no such process, no right to read it, or nothing found.
    """
    return find_ram(pid).blocks


def find_ram(pid: int, monitor: str | None = None) -> FoundRam:
    """Find the guest RAM of a process as `find_blocks` does, with warnings.

    Args:
        pid: the process.
        monitor: the path of its QMP socket, where QEMU is asked for its RAMBlocks; None not to.

    Raises:
        SourceError: also when the monitor does not answer as QEMU's.
    """
    truth = None if monitor is None else ask_ramblocks(monitor)
    try:
        mappings = read_maps(pid)
        command, executable = _command_line(pid), _executable(pid)
        remarks: list[str] = []
        found: list[tuple[str, Mapping]] = []
        if truth is not None or is_qemu(command, executable):
            ram = _qemu_ram(pid, command, executable or command[0], mappings)
            found = ram.named + ram.unnamed
            if truth is None:
                remarks += ram.remarks()
            else:
                found, remarks = as_qemu_says(truth, found, mappings)
        if not found and truth is None:
            found = largest(mappings)
    except OSError as error:
        raise process_error(error, pid) from error
    links = links_of(pid)
    blocks = [mapped_block(pid, mapping, _idstr(name), links=links) for name, mapping in found]
    if not blocks:
        raise SourceError(f"process {pid} has no guest RAM to find: {why_not(mappings)}")
    return FoundRam(_with_unique_names(blocks), [printable(remark) for remark in remarks])


def _qemu_ram(pid: int, command: list[str], program: str, mappings: list[Mapping]) -> QemuRam:
    configured = configured_memory(command, program, lambda path: _config(pid, path))
    ram = match_guest_ram(configured, mappings)
    if ram.is_doubtful:
        # Costly in large guests, so only then; and a kernel may be built without it.
        with suppress(FileNotFoundError):
            ram = match_guest_ram(configured, list(read_smaps(pid)))
    return ram


def _command_line(pid: int) -> list[str]:
    with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
        return os.fsdecode(cmdline.read(_COMMAND_MAX)).rstrip("\0").split("\0")


def _executable(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:  # a kernel thread, or one that may not be looked at
        return None


def _config(pid: int, path: str) -> str:
    """Return the text of a configuration file of QEMU's; empty when it cannot be had.

    Only a file of the user who runs QEMU is read, so that nobody reads others' files by our rights.
    """
    folder = "root" if path.startswith("/") else "cwd"
    try:
        fd = os.open(f"/proc/{pid}/{folder}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            status, owner = os.fstat(fd), os.stat(f"/proc/{pid}").st_uid
            is_theirs = stat.S_ISREG(status.st_mode) and status.st_uid == owner
            # The kernel's own files, which have no size, may block or fail.
            return os.fsdecode(file.read(_CONFIG_MAX)) if is_theirs and status.st_size else ""
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return ""


def _idstr(name: str) -> str:
    return printable(name)[:_IDSTR_MAX]


def _with_unique_names(blocks: list[RAMBlock]) -> list[RAMBlock]:
    totals, seen = Counter(block.idstr for block in blocks), Counter[str]()
    unique = []
    for block in blocks:
        seen[block.idstr] += 1
        name = f"{block.idstr}#{seen[block.idstr]}" if totals[block.idstr] > 1 else block.idstr
        unique.append(replace(block, idstr=name))
    return unique
