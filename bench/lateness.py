# SPDX-License-Identifier: MIT
"""How late passes begin, and how much of the first period one takes, on this machine now.

    python bench/lateness.py [--size 1G] [--runs 40]

Each run measures 2 s, 7 periods. Wanted: 99 % of all passes begin within 0.5 ms of their
schedule, and a pass takes less than 10 % of the first period.
"""

from __future__ import annotations

import argparse
import mmap
import os

import numpy as np

from pysampler.memory.source import process_fd_block
from pysampler.sampling.page_sampling import PageSampling
from pysampler.sampling.plan import PROFILES
from pysampler.sampling.sampler import Sampler
from pysampler.units import parse_size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1G", help="memory to sample (1G)")
    parser.add_argument("--runs", type=int, default=40)
    args = parser.parse_args()
    size = parse_size(args.size)
    fd = os.memfd_create("bench")
    os.ftruncate(fd, size)
    with mmap.mmap(fd, size) as memory:
        np.frombuffer(memory, np.uint64)[:] = np.arange(size // 8, dtype=np.uint64)
    block = process_fd_block(os.getpid(), fd)
    late_us, pass_us = [], []
    for _ in range(args.runs):
        with Sampler(PageSampling([block], profile=PROFILES["qemu"]), 2000) as sampler:
            *_, vector = sampler
        late_us += [
            exact_ns / 1e3 - due_ms * 1e3
            for exact_ns, due_ms in zip(vector.details["periods-ns"], sampler.schedule, strict=True)
        ]
        pass_us += [ns / 1e3 for ns in vector.details["passes-ns"]]
    for name, values, limit in (("late", late_us, 500.0), ("pass", pass_us, 12_500.0)):
        p50, p99, top = np.percentile(values, [50, 99, 100])
        print(
            f"{name}: median {p50:.0f} us, p99 {p99:.0f} us, most {top:.0f} us of {len(values)};"
            f" wanted p99 <= {limit:.0f} us: {'met' if p99 <= limit else 'MISSED'}"
        )
    print(f"load average {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
