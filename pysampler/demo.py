# SPDX-License-Identifier: MIT
"""``python -m pysampler.demo``: a process that dirties memory, sampled from outside for 10 s.

This is what ``make demo`` runs.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
import time
from typing import IO, cast

import numpy as np

from pysampler.units import MIB

PAGE_SIZE = 4096
MEMORY = 512 * MIB
FILLED = 0.7  # share of the memory that is not zero
HOT = 0.1  # share of the filled pages that gets nine writes of ten
WRITES_PER_S = 20_000


def main() -> int:
    """Start the writer, sample it by pid, end it; return the sampler's exit code."""
    command = [sys.executable, "-m", "pysampler.demo", "--write"]
    # The writer ends with its standard input, so it cannot outlive us, whatever happens.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        cast("IO[bytes]", writer.stdout).readline()
        words = ["sample", "--pid", str(writer.pid), "--calc-time", "10s"]
        print(f"$ pysampler {' '.join(words)}", file=sys.stderr)
        sampler = [sys.executable, "-m", "pysampler", *words]
        return subprocess.run(sampler, check=False).returncode


def write() -> None:
    """Dirty the pages of a memfd, named as QEMU's are, until standard input ends."""
    fd = os.memfd_create("memory-backend-memfd")
    os.ftruncate(fd, MEMORY)
    pages = np.frombuffer(mmap.mmap(fd, MEMORY), dtype=np.uint64).reshape(-1, PAGE_SIZE // 8)
    n_filled = int(len(pages) * FILLED)
    n_hot = int(n_filled * HOT)
    pages[:n_filled] = np.arange(1, n_filled + 1)[:, np.newaxis]
    threading.Thread(target=lambda: os._exit(sys.stdin.read() != ""), daemon=True).start()
    print("ready", flush=True)
    rng = np.random.default_rng(7)
    batch = WRITES_PER_S // 100
    while True:
        started = time.monotonic()
        hot = rng.random(batch) < 0.9
        vfns = np.where(hot, rng.integers(0, n_hot, batch), rng.integers(0, n_filled, batch))
        pages[vfns, 0] = rng.integers(1, 1 << 63, batch)
        time.sleep(max(0.0, started + 0.01 - time.monotonic()))


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        write()
    sys.exit(main())
