# SPDX-License-Identifier: MIT
"""A ``pysampler guest`` as a process of our own, its counters read from shared memory."""

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

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

_READY_SECONDS = 120.0  # filling 24 GiB takes most of it
_END_SECONDS = 10.0


class GuestProcess:
    """A running guest; ends with the ``with`` block, or with the thread that made it.

    Args:
        words: arguments of ``pysampler guest``.

    Attributes:
        pid: of its process.
        ready: the JSON object that it printed when it was ready.

    Raises:
        SourceError: it did not start; the message has its own words.
    """

    def __init__(self, *words: str) -> None:
        command = module_command("pysampler.bound_guest", str(os.getpid()), "guest", *words)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._errors, stdin=subprocess.DEVNULL
        )
        try:
            self.ready = self._wait_until_ready()
            self.pid: int = self.ready["pid"]
            counters = self.ready["counters"]
            self._counters = self.shared(counters["fd"])[:: counters["slot-bytes"] // 8]
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self) -> dict[str, Any]:
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

    def shared(self, fd: int) -> NDArray[np.uint64]:
        """Return the numbers in a memfd of the guest, mapped here to be read."""
        with open(f"/proc/{self.pid}/fd/{fd}", "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint64)

    def writes(self) -> int:
        """Return how many writes all its vCPUs have done."""
        return int(self._counters.sum())

    def speed(self, seconds: float) -> float:
        """Return writes a second, counted over so many seconds."""
        begin, writes = time.monotonic_ns(), self.writes()
        time.sleep(seconds)
        return (self.writes() - writes) * 1e9 / (time.monotonic_ns() - begin)

    def close(self) -> None:
        """End the guest."""
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
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
