# SPDX-License-Identifier: MIT
"""QEMUs to migrate between, and the guest of migration_guest.c in one, writing at a known pace."""

from __future__ import annotations

import asyncio
import contextlib
import math
import mmap
import os
import shutil
import signal
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from qemu.qmp.legacy import QEMUMonitorProtocol

from pysampler import find_blocks
from pysampler.memory.ramblock import FileMemory, RAMBlock
from pysampler.units import MIB
from pysampler.validation import theory

if TYPE_CHECKING:
    from typing_extensions import Self

PAGE_SIZE = 4096
FILL_BASE = 16 * MIB
MODES = ("uniform", "hotcold", "seq", "burst")
BURST_S = 0.5  # and the pause after it


class GiveUpError(Exception):
    """The machine cannot do what is asked; one line for people."""


@dataclass(frozen=True)
class GuestConfig:
    """What the guest does, as in ``config``."""

    ram_mib: int
    fill_mib: int
    mode: str
    ws_mib: int
    wps: int

    @property
    def n_pages(self) -> int:
        """Pages of the working set."""
        return self.ws_mib * MIB // PAGE_SIZE

    @property
    def n_hot(self) -> int:
        """Pages that get 90 % of a hotcold guest's writes."""
        return round(self.n_pages * 0.1)

    @property
    def share_active(self) -> float:
        """Share of the time in which it writes."""
        return 0.5 if self.mode == "burst" else 1.0

    def dirty_pages(self, seconds: float, wps: float) -> float:
        """Return the expected distinct pages at a mean pace of ``wps`` writes a second."""
        writer: theory.Writer
        if self.mode == "uniform":
            writer = theory.uniform(self.n_pages)
        elif self.mode == "hotcold":
            writer = theory.hot_cold(self.n_pages)
        elif self.mode == "seq":
            writer = theory.Sweep(self.n_pages)
        else:
            writer = theory.Bursts(theory.uniform(self.n_pages), BURST_S, BURST_S)
        return writer.after(seconds, wps / self.share_active).mean


def build_guest(directory: str) -> str:
    """Compile the guest; return the path of its kernel."""
    if shutil.which("gcc") is None:
        raise GiveUpError("no gcc here: apt-get install gcc")
    kernel = f"{directory}/guest"
    source = Path(__file__).with_name("migration_guest.c")
    flags = "-m32 -O2 -Wall -Wextra -Werror -ffreestanding -nostdlib -static -fno-pic -no-pie"
    layout = "-fno-stack-protector -mgeneral-regs-only -fno-toplevel-reorder"
    link = "-Wl,-Ttext=0x100000,--build-id=none"
    command = ["gcc", *flags.split(), *layout.split(), link, str(source), "-o", kernel]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise GiveUpError(f"gcc cannot build the guest:\n{done.stderr}")
    return kernel


def prepare(program: str) -> None:
    """Look for the QEMU, and have Ctrl-C and SIGTERM end those that are started."""
    if shutil.which(program) is None:
        raise GiveUpError(
            f"no {program} here: apt-get install qemu-system-x86, or give --qemu PATH"
        )
    # A shell has its background jobs ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


class Qemu:
    """A QEMU, ended with its context.

    Args:
        program: which.
        directory: for its socket.
        ram_mib: its RAM.
        arguments: further ones.
        backend: what its RAM is, by default a memfd that others can map.
    """

    def __init__(
        self,
        program: str,
        directory: str,
        ram_mib: int,
        *arguments: str,
        backend: str = "memory-backend-memfd,share=on,prealloc=on",
    ) -> None:
        address = f"{directory}/qmp-{len(os.listdir(directory))}"
        self._monitor = QEMUMonitorProtocol(address, server=True)
        memory = f"{backend},id=ram,size={ram_mib}M"
        self.process = subprocess.Popen(
            [
                *(program, "-S", "-accel", "tcg", "-nodefaults", "-display", "none"),
                *("-machine", "pc,memory-backend=ram", "-m", f"{ram_mib}M", "-object", memory),
                *("-qmp", f"unix:{address}", *arguments),
            ],
            start_new_session=True,  # Ctrl-C is for us
        )
        try:
            self._monitor.accept(timeout=30)
        except BaseException as error:
            self._end()
            if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
                raise GiveUpError(f"{program}: no answer on its QMP socket for 30 s") from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        with contextlib.suppress(EOFError):  # that it has closed the connection
            self._monitor.close()

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()

    def command(self, name: str, **arguments: object) -> Any:
        """Execute a QMP command; underscores in argument names stand for hyphens."""
        return self._monitor.cmd(name, **{k.replace("_", "-"): v for k, v in arguments.items()})

    def ram(self) -> RAMBlock:
        """Return its RAM."""
        return max(find_blocks(self.process.pid), key=lambda block: block.used_length)


class Counts(NamedTuple):
    """What the guest has done: TSC, writes, and TSC ticks in which it was to write."""

    tsc: int
    n_writes: int
    active: int


class QemuGuest:
    """The guest in a running QEMU: filled, set to its workload, and counting."""

    CONTROL = 0x200000
    ORDERS = struct.Struct("<10I")  # struct control without go
    COUNTS = struct.Struct("<I3Q")

    def __init__(self, qemu: Qemu, workload: GuestConfig, seed: int) -> None:
        self._workload = workload
        self.block = qemu.ram()
        assert isinstance(self.block.memory, FileMemory)
        with open(self.block.memory.path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.block.used_length)
        rng = np.random.Generator(np.random.SFC64(seed))
        for offset in range(FILL_BASE, FILL_BASE + workload.fill_mib * MIB, MIB):
            self._memory[offset : offset + MIB] = rng.bytes(MIB)
        qemu.command("cont")
        self.ticks_per_s = self._calibrate()
        orders = self.ORDERS.pack(
            MODES.index(workload.mode),
            workload.n_pages,
            workload.n_hot,
            round(workload.wps / workload.share_active / self.ticks_per_s * 2**40),
            round(self.ticks_per_s / 4),
            round(self.ticks_per_s * BURST_S),
            *rng.integers(1, 1 << 32, 4).tolist(),
        )
        self._memory[self.CONTROL + 4 : self.CONTROL + 4 + len(orders)] = orders
        self._memory[self.CONTROL] = 1

    def counts(self) -> Counts:
        """Return the counts of one moment."""
        begin = self.CONTROL + 4 + self.ORDERS.size
        while True:
            first = self._memory[begin : begin + self.COUNTS.size]
            sequence, *counts = self.COUNTS.unpack(first)
            if sequence % 2 == 0 and first == self._memory[begin : begin + self.COUNTS.size]:
                return Counts(*counts)

    def pace(self, then: Counts, now: Counts) -> float:
        """Return the writes a second of guest time, pauses between bursts included evenly."""
        seconds = (now.active - then.active) / self.ticks_per_s
        return (now.n_writes - then.n_writes) / seconds * self._workload.share_active

    def _calibrate(self) -> float:
        """Return the TSC's ticks per second of the host's clock."""
        deadline = time.monotonic() + 30
        while not self.counts().tsc:
            if time.monotonic() > deadline:
                raise GiveUpError("the guest did not start within 30 s")
            time.sleep(0.01)
        began, tsc = self._moment()
        time.sleep(2)
        ended, tsc_then = self._moment()
        return (tsc_then - tsc) / (ended - began)

    def _moment(self) -> tuple[float, int]:
        """Return host time and TSC of one tick of the timer, the best seen of twenty."""
        best = (math.inf, 0.0, 0)
        for _ in range(20):
            last = self.counts().tsc
            before = time.monotonic()
            while (tsc := self.counts().tsc) == last:
                before = time.monotonic()
            now = time.monotonic()
            best = min(best, (now - before, now, tsc))
        return best[1:]

    def close(self) -> None:
        """Unmap the memory."""
        self._memory.close()
