# SPDX-License-Identifier: MIT
"""A real QEMU that runs no guest code, whose memory the test writes."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from qemu.qmp.legacy import QEMUMonitorProtocol

from pysampler.core import Hash
from pysampler.memory.ramblock import FileMemory, RAMBlock

if TYPE_CHECKING:
    from collections.abc import Iterable

PROGRAM = "qemu-system-x86_64"

# What .ci/qemu10 makes: QEMU 10 and its firmware in a folder, not installed.
_FOLDER_10 = os.environ.get("PYSAMPLER_QEMU10") or str(Path(__file__).parents[2] / ".qemu10")
PROGRAM_10 = (
    f"{_FOLDER_10}/usr/bin/{PROGRAM}",
    *("-L", f"{_FOLDER_10}/usr/share/qemu", "-L", f"{_FOLDER_10}/usr/share/seabios"),
)
PAGE_SIZE = 4096

_TRACE = re.compile(
    r"get_ramblock_vfn_hash ramblock name: (.+), vfn: (\d+), \w+: (\d+)$", re.MULTILINE
)
_RAMBLOCK = re.compile(
    r"^\s*(\S+)\s+\d+ \wiB\s+0x[0-9a-f]+ 0x([0-9a-f]+) 0x[0-9a-f]+(?:\s+0x([0-9a-f]+))?",
    re.MULTILINE,
)


class TracedHash(NamedTuple):
    """One page that QEMU hashed."""

    idstr: str
    vfn: int
    hash: int


class Qemu:
    """A QEMU started with ``-S``: it answers QMP, and nothing but the test writes guest RAM.

    Where there is none the test is skipped, and fails under CI=true.
    """

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        program: tuple[str, ...] = (PROGRAM,),
        called: str | None = None,
        accelerator: str = "tcg",
    ) -> None:
        if shutil.which(program[0]) is None:
            give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            cure = "apt-get install qemu-system-x86" if program[0] == PROGRAM else ".ci/qemu10"
            give_up(f"no {program[0]} here; {cure}")
        address = str(directory / "qmp")
        self._log = directory / "log"
        self._log.touch()
        # The monitor takes the thread's loop and never closes it; asyncio.run() would then drop it.
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        self._monitor = QEMUMonitorProtocol(address, server=True)
        self.process = subprocess.Popen(
            [
                *(called or program[0], *program[1:]),
                *("-S", "-accel", accelerator, "-nodefaults", "-display", "none"),
                *("-qmp", f"unix:{address}"),
                *("-trace", "get_ramblock_vfn_hash", "-D", str(self._log)),
                *arguments,
            ],
            executable=shutil.which(program[0]),
        )
        try:
            self._monitor.accept(timeout=20)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(20)
        with contextlib.suppress(EOFError):  # QEMU has closed the connection
            self._monitor.close()
        self._loop.close()
        asyncio.set_event_loop(None)

    @property
    def pid(self) -> int:
        return self.process.pid

    def command(self, name: str, **arguments: object) -> Any:
        """Execute a QMP command; underscores in argument names stand for hyphens."""
        return self._monitor.cmd(name, **{k.replace("_", "-"): v for k, v in arguments.items()})

    def page_hash(self) -> Hash:
        """Return the hash that this version uses for page sampling."""
        version = self.command("query-version")["qemu"]
        return Hash.XXH64 if (version["major"], version["minor"]) >= (8, 1) else Hash.CRC32

    def ramblocks(self) -> dict[str, int]:
        """Return idstr and used length of each RAMBlock, as ``info ramblock`` prints them."""
        table = self.command("human-monitor-command", command_line="info ramblock")
        return {idstr: int(used, 16) for idstr, used, _ in _RAMBLOCK.findall(table)}

    def addresses(self) -> dict[str, int]:
        """Return idstr and address in QEMU's memory; empty for one that does not tell."""
        table = self.command("human-monitor-command", command_line="info ramblock")
        return {idstr: int(at, 16) for idstr, _, at in _RAMBLOCK.findall(table) if at}

    def traced(self) -> list[TracedHash]:
        """Return all pages hashed so far, in order."""
        lines = _TRACE.findall(self._log.read_text())
        return [TracedHash(idstr, int(vfn), int(value)) for idstr, vfn, value in lines]

    def wait_for_traced(self, n: int, timeout_s: float = 20) -> None:
        """Wait until ``n`` pages have been hashed."""
        deadline = time.monotonic() + timeout_s
        while (done := len(self.traced())) < n:
            assert time.monotonic() < deadline, f"QEMU hashed {done} of {n} pages"
            time.sleep(0.01)

    def wait_measured(self, timeout_s: float = 20) -> dict[str, Any]:
        """Wait for the end of the measurement; return the reply of query-dirty-rate."""
        deadline = time.monotonic() + timeout_s
        while (reply := self.command("query-dirty-rate"))["status"] != "measured":
            assert time.monotonic() < deadline, reply
            time.sleep(0.01)
        return reply

    def shared_memory(self, length: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Map the backend whose file has this length; return its pages, one a row."""
        for name in os.listdir(directory := f"/proc/{self.pid}/fd"):
            path = f"{directory}/{name}"
            if not os.path.isfile(path) or os.stat(path).st_size != length:
                continue
            with open(path, "r+b") as file:
                return np.frombuffer(mmap.mmap(file.fileno(), length), np.uint8).reshape(
                    -1, PAGE_SIZE
                )
        raise AssertionError(f"QEMU has no file of {length} bytes open")


def write(block: RAMBlock, offsets: Iterable[int], data: bytes) -> None:
    """Write ``data`` at each offset of a RAMBlock, where the block is said to be."""
    memory = block.memory
    if isinstance(memory, FileMemory):  # mapped, since hugetlbfs takes no write()
        with (
            open(memory.path, "r+b") as file,
            mmap.mmap(file.fileno(), block.used_length, offset=memory.offset) as mapped,
        ):
            for offset in offsets:
                mapped[offset : offset + len(data)] = data
    else:
        with open(f"/proc/{memory.pid}/mem", "r+b", buffering=0) as file:
            for offset in offsets:
                os.pwrite(file.fileno(), data, memory.address + offset)
