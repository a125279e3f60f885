# SPDX-License-Identifier: MIT
"""A ``pysampler guest`` of our own, its counters and its truth read from shared memory."""

from __future__ import annotations

import json
import mmap
import os
import select
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler.errors import SourceError
from pysampler.host.child import module_command
from pysampler.memory.source import find_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from pysampler.memory.ramblock import RAMBlock

_READY_SECONDS = 120.0  # filling 24 GiB takes most of it


class GuestProcess:
    """A running guest with one vCPU; ends with the ``with`` block, or with the thread that made it.

    Args:
        size: bytes of its RAM.
        workload: as ``--workload`` takes it.
        seed: of its content and its writes.

    Raises:
        SourceError: it did not start; the message has its own words.
    """

    def __init__(self, size: int, workload: str, seed: int) -> None:
        words = ["guest", "--memory", str(size), "--truth", "--workload", workload]
        command = module_command(
            "pysampler.bound_guest", str(os.getpid()), *words, "--seed", str(seed)
        )
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __exit__
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, stdin=subprocess.DEVNULL
        )
        try:
            ready = self._ready()
            self.pid: int = ready["pid"]
            main = ready["blocks"][0]
            self._counters = self._map(ready["counters"]["fd"])[
                :: ready["counters"]["slot-bytes"] // 8
            ]
            self._stamps = self._map(ready["truth"]["fd"])[: main["length"] // 4096]
            self.block: RAMBlock = next(
                block for block in find_blocks(self.pid) if block.idstr == main["idstr"]
            )
        except BaseException:
            self.close()
            raise

    def _ready(self) -> dict[str, Any]:
        output = self._process.stdout
        if output is not None and select.select([output], [], [], _READY_SECONDS)[0]:
            line = output.readline()
            if line:
                ready: dict[str, Any] = json.loads(line)
                return ready
        self._process.kill()
        self._process.wait()
        self._errors.seek(0)
        words = self._errors.read(2000).decode("utf-8", "replace").strip()
        raise SourceError(words or "the guest did not get ready")

    def _map(self, fd: int) -> NDArray[np.uint64]:
        with open(f"/proc/{self.pid}/fd/{fd}", "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint64)

    def writes(self) -> int:
        """Return how many writes the guest has done."""
        return int(self._counters.sum())

    def dirty_since(self, monotonic_ns: int) -> int:
        """Return how many pages have been written since then."""
        return int(np.count_nonzero(self._stamps >= monotonic_ns))

    def speed(self, seconds: float) -> float:
        """Return writes a second, counted over so many seconds."""
        begin, writes = time.monotonic_ns(), self.writes()
        time.sleep(seconds)
        return (self.writes() - writes) * 1e9 / (time.monotonic_ns() - begin)

    def close(self) -> None:
        """End the guest."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def memory_needed(size: int) -> int:
    """Return the bytes that a guest of this size takes, its truth and tracking included."""
    return size + size // 4096 * 8 + size // 256 + (256 << 20)
