# SPDX-License-Identifier: MIT
"""Measure what a pass over cold random pages costs, in ns per page, side by side in one run.

Each round gives every contender its own fresh random pages, in shuffled order; a ratio is the
median of the rounds' ratios, so that what slows the machine down for a while slows down both
sides. docs/benchmarks.md says what the contenders are and how to read the table.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import mmap
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyperf
from rich.console import Console
from rich.table import Table

from pysampler import _native, core
from pysampler.benchmark.harness import Timing, run_rounds
from pysampler.core import Hash, Hasher, Simd
from pysampler.units import format_size, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from pysampler.core import VfnArray

PAGE_SIZE = 4096
PAGES = 4096  # in a round
PAGES_FOR_THREADS = 16384  # the samples of a 32 GiB VM
BATCH_PAGES = 32  # as the sampler's own reader of process memory
LATE_NS = 500_000  # a thread that begins later found no free CPU
LEAST_ROUNDS = 11


@dataclass(frozen=True)
class Contender:
    """One way to go over a list of pages, and what it took, round by round."""

    key: str
    name: str
    timing: Timing


@dataclass(frozen=True)
class Wanted:
    """A bound on the ratio of two contenders' times, both given by key."""

    over: str
    under: str
    at_most: float = math.inf
    at_least: float = 0.0

    def __str__(self) -> str:
        bound = f"<= {self.at_most}" if self.at_most < math.inf else f">= {self.at_least}"
        return f"{self.over}/{self.under} {bound}"


WANTED = (
    Wanted("b", "a", at_most=1.15),
    Wanted("c", "a", at_most=1.6),
    Wanted("d", "c", at_least=2),
    Wanted("e", "b", at_least=4),
    Wanted("g", "f", at_most=1.3),
    Wanted("b2M", "a2M", at_most=1.35),
    Wanted("b1T", "b2T", at_least=1.7),
)


def mapped(hasher: Hasher, memory: mmap.mmap) -> Callable[[VfnArray], None]:
    """Return a pass over pages of memory mapped here."""

    def run(vfns: VfnArray) -> None:
        hashes = np.empty(len(vfns), dtype=np.uint64)
        assert core.hash_mapped(hasher, memory, PAGE_SIZE, vfns, hashes) == len(vfns)

    return run


def remote(hasher: Hasher, pid: int, address: int) -> Callable[[VfnArray], None]:
    """Return our pass over another process's pages."""
    staging = bytearray(BATCH_PAGES * PAGE_SIZE)

    def run(vfns: VfnArray) -> None:
        hashes = np.empty(len(vfns), dtype=np.uint64)
        done = core.hash_remote(hasher, pid, address, PAGE_SIZE, vfns, staging, hashes)
        assert done == len(vfns)

    return run


class Iovec(ctypes.Structure):
    """The C library's struct iovec."""

    _fields_ = (("base", ctypes.c_size_t), ("length", ctypes.c_size_t))


def process_vm_readv_alone(pid: int, address: int, n: int) -> Callable[[VfnArray], None]:
    """Return the system call of our remote pass in the same batches, without hashing."""
    libc = ctypes.CDLL(None, use_errno=True)
    staging = np.zeros(BATCH_PAGES * PAGE_SIZE, dtype=np.uint8)
    local = Iovec(staging.ctypes.data, len(staging))
    pages = np.full((n, 2), PAGE_SIZE, dtype=np.uint64)  # n times struct iovec
    batches = [ctypes.c_void_p(pages[at:].ctypes.data) for at in range(0, n, BATCH_PAGES)]

    def run(vfns: VfnArray) -> None:
        pages[:, 0] = address + vfns * PAGE_SIZE
        for batch in batches:
            got = libc.process_vm_readv(pid, ctypes.byref(local), 1, batch, BATCH_PAGES, 0)
            assert got == len(staging)

    return run


@contextmanager
def random_memory(size: int, *, huge: bool = False, private: bool = False) -> Iterator[mmap.mmap]:
    """Map memory full of random bytes: of a memfd unless private, in 4 KiB pages unless huge."""
    fd = -1 if private else os.memfd_create("bench")
    try:
        if fd >= 0:
            os.truncate(fd, size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if private else mmap.MAP_SHARED
        with mmap.mmap(fd, size, flags=flags) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
            generator = np.random.Generator(np.random.SFC64())
            while chunk := min(64 << 20, size - memory.tell()):
                memory.write(generator.bytes(chunk))
            yield memory
    finally:
        if fd >= 0:
            os.close(fd)


def huge_part(memory: mmap.mmap) -> float:
    """Return which part of a private mapping is made of 2 MiB pages."""
    start = f"{core.address_of(memory):x}-"
    with open("/proc/self/smaps", encoding="ascii") as smaps:
        of_mapping = smaps.read().partition(f"\n{start}")[2]
    match = re.search(r"^AnonHugePages: *(\d+) kB", of_mapping, re.MULTILINE)
    assert match
    return int(match[1]) * 1024 / len(memory)


def hold_memory(size: int, sender: Connection) -> None:
    """Be the process whose private memory is read, until killed."""
    with random_memory(size, private=True) as memory:
        sender.send(core.address_of(memory))
        while True:
            time.sleep(3600)


def contender(key: str, name: str, run: Callable[[VfnArray], None], size: int) -> Contender:
    """Return a contender that goes over fresh random pages of a memory, drawn before it is timed.

    The clock is this thread's own, which stands still while another process has the CPU. With
    any other, the longer a run the more of the others' time it gets, and ratios grow.
    """
    vfns, draw = random_pages(PAGES, size)
    return Contender(key, name, Timing(lambda: run(vfns), PAGES, prepare=draw))


def random_pages(n: int, size: int) -> tuple[VfnArray, Callable[[], None]]:
    """Return a list of ``n`` pages of ``size`` bytes of memory, and what draws it anew."""
    generator = np.random.default_rng()
    vfns = np.empty(n, dtype=np.uint64)

    def draw() -> None:
        vfns[:] = generator.integers(0, size // PAGE_SIZE, n, dtype=np.uint64)

    return vfns, draw


def race(contenders: list[Contender], rounds: int) -> None:
    """Let every contender run once a round, in shuffled order."""
    seed = random.getrandbits(64)
    for _ in run_rounds([one.timing for one in contenders], rounds, seed):
        pass


def race_threads(run: Callable[[VfnArray], None], size: int, rounds: int) -> list[Contender]:
    """Let one thread, then two with a half each, go over fresh random pages.

    The wall clock counts here, so a round counts only when no other process had one of the CPUs
    meanwhile: each thread began at once, and its own clock did not stand still.
    """
    begun = 0
    undisturbed: list[bool] = []  # of each thread of this round

    def share(vfns: VfnArray) -> bool:
        late = time.perf_counter_ns() - begun > LATE_NS
        wall, own = time.perf_counter_ns(), time.thread_time_ns()
        run(vfns)
        own, wall = time.thread_time_ns() - own, time.perf_counter_ns() - wall
        return not late and wall < 1.03 * own

    def threaded(n_threads: int) -> Timing:
        vfns, draw = random_pages(PAGES_FOR_THREADS, size)

        def work() -> None:
            nonlocal begun
            begun = time.perf_counter_ns()
            undisturbed.extend(pool.map(share, np.array_split(vfns, n_threads)))

        return Timing(work, PAGES_FOR_THREADS, time.perf_counter_ns, draw)

    attempts = 20 * rounds
    with ThreadPoolExecutor(2) as pool:
        one = Contender("b1T", "xxh3, one thread", threaded(1))
        two = Contender("b2T", "xxh3, two threads", threaded(2))
        for _ in range(attempts):
            undisturbed.clear()
            figures = one.timing.once(), two.timing.once()
            if all(undisturbed):
                one.timing.ns_per_page.append(figures[0])
                two.timing.ns_per_page.append(figures[1])
            if (counted := len(two.timing.ns_per_page)) == rounds:
                return [one, two]
    print(f"two threads: {counted} of {attempts} rounds had two CPUs for themselves")
    return [one, two] if counted >= LEAST_ROUNDS else []


def measure_mapped(size: int, rounds: int) -> list[Contender]:
    """Run the contenders that read mapped pages of 4 KiB."""
    xxh3 = Hasher(Hash.XXH3)
    loop = Hasher(Hash.XXH64, simd=Simd.BASE, prefetch=False)
    old_loop = Hasher(Hash.CRC32, prefetch=False)
    with random_memory(size) as memory:
        single = [
            contender("a", "bare read", mapped(Hasher(Hash.READ), memory), size),
            contender("b", "xxh3", mapped(xxh3, memory), size),
            contender("c", "xxh64", mapped(Hasher(Hash.XXH64), memory), size),
            contender("d", "xxh64, QEMU's loop", mapped(loop, memory), size),
            contender("e", "crc32, old QEMU's loop", mapped(old_loop, memory), size),
        ]
        race(single, rounds)
        threaded = race_threads(mapped(xxh3, memory), size, rounds)
    return single + threaded


def measure_huge(size: int, rounds: int) -> list[Contender]:
    """Run the contenders that read mapped pages of 2 MiB; none where there are no such pages."""
    with random_memory(size, huge=True, private=True) as memory:
        if (part := huge_part(memory)) < 0.99:
            print(f"2 MiB pages: only {part:.0%} of the memory has them; they must be allowed in")
            print(
                "/sys/kernel/mm/transparent_hugepage/enabled, and there must be enough free ones."
            )
            return []
        contenders = [
            contender("a2M", "bare read, 2 MiB pages", mapped(Hasher(Hash.READ), memory), size),
            contender("b2M", "xxh3, 2 MiB pages", mapped(Hasher(Hash.XXH3), memory), size),
            contender("c2M", "xxh64, 2 MiB pages", mapped(Hasher(Hash.XXH64), memory), size),
        ]
        race(contenders, rounds)
    return contenders


def measure_remote(size: int, rounds: int) -> list[Contender]:
    """Run the contenders that read another process's private memory."""
    processes = multiprocessing.get_context("spawn")
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=hold_memory, args=(size, sender), daemon=True)
    child.start()
    try:
        address, pid = receiver.recv(), child.pid
        assert pid
        contenders = [
            contender("f", "process_vm_readv", process_vm_readv_alone(pid, address, PAGES), size),
            contender("g", "remote pass, xxh3", remote(Hasher(Hash.XXH3), pid, address), size),
            contender("h", "remote pass, xxh64", remote(Hasher(Hash.XXH64), pid, address), size),
        ]
        race(contenders, rounds)
    finally:
        child.kill()
        child.join()
    return contenders


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """Return an interval that holds the true median with at least 95 % confidence."""
    n = len(values)
    rank, tail = -1, 0.0
    while tail + math.comb(n, rank + 1) / 2**n <= 0.025:
        rank += 1
        tail += math.comb(n, rank) / 2**n
    ordered = sorted(values)
    return ordered[max(rank, 0)], ordered[n - 1 - max(rank, 0)]


def verdict(wanted: Wanted, ratios: list[float]) -> str:
    """Return whether the wanted bound holds; unclear when the interval reaches past it."""
    met = [
        wanted.at_least <= edge <= wanted.at_most
        for edge in (*interval_of_median(ratios), statistics.median(ratios))
    ]
    if all(met):
        return "yes"
    return "unclear" if any(met) else "no"


def ratios_of(wanted: Wanted, contenders: dict[str, Contender]) -> list[float]:
    """Return the ratio of each round."""
    over = contenders[wanted.over].timing.ns_per_page
    under = contenders[wanted.under].timing.ns_per_page
    return [a / b for a, b in zip(over, under, strict=True)]


def show(contenders: dict[str, Contender], console: Console) -> None:
    """Print both tables."""
    times = Table(title="ns per page of 4096 bytes")
    times.add_column()
    times.add_column("pass")
    for column in ("median", "min", "IQR/2", ""):
        times.add_column(column, justify="right")
    for one in contenders.values():
        timing = one.timing
        times.add_row(
            one.key,
            one.name,
            f"{timing.median:.0f}",
            f"{min(timing.ns_per_page):.0f}",
            f"{100 * timing.spread:.0f} %",
            "unstable" if timing.unstable else "",
        )
    console.print(times)
    table = Table(title="ratios")
    for column in ("wanted", "median", "95 % interval", "met"):
        table.add_column(column)
    for wanted in WANTED:
        if wanted.over in contenders and wanted.under in contenders:
            ratios = ratios_of(wanted, contenders)
            low, high = interval_of_median(ratios)
            median = statistics.median(ratios)
            table.add_row(
                str(wanted), f"{median:.2f}", f"{low:.2f} .. {high:.2f}", verdict(wanted, ratios)
            )
        else:
            table.add_row(str(wanted), "", "", "not measured")
    console.print(table)


def commit() -> str:
    """Return the commit that is measured, with -dirty when files differ from it."""
    git = subprocess.run(
        ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return git.stdout.strip() or "unknown"


def compiler() -> str:
    """Return the compiler that left its name in the C core."""
    with open(_native.__file__, "rb") as library:
        match = re.search(rb"GCC: \(([^\0]+)|clang version [^\0]+", library.read())
    return match[0].decode("ascii", "replace") if match else "unknown"


def describe(size: int) -> dict[str, Any]:
    """Return what a figure must travel with."""
    found_by_pyperf = pyperf.Run([1.0]).get_metadata()
    wanted = ("cpu_model_name", "cpu_config", "cpu_count", "platform", "load_avg_1min")
    return {
        **{name: found_by_pyperf.get(name, "unknown") for name in wanted},
        "compiler": compiler(),
        "simd": core.simd_best().name,
        "zlib": core.zlib_version(),
        "commit": commit(),
        "memory": format_size(size),
    }


def dump(contenders: dict[str, Contender], machine: dict[str, Any], path: str) -> None:
    """Write the values of all rounds in pyperf's format."""
    pyperf.BenchmarkSuite(
        [
            pyperf.Benchmark(
                [
                    pyperf.Run(
                        [ns / 1e9 for ns in one.timing.ns_per_page],
                        metadata={
                            "name": f"{one.key}: {one.name}",
                            "unit": "second",
                            **machine,
                        },
                    )
                ]
            )
            for one in contenders.values()
        ]
    ).dump(path, replace=True)


def size_argument(text: str) -> int:
    """Return a size in whole 2 MiB pages."""
    size = parse_size(text) // (2 << 20) * (2 << 20)
    if size < 64 << 20:
        raise argparse.ArgumentTypeError("64M is the least; below some GiB pages are not cold")
    return size


def rounds_argument(text: str) -> int:
    """Return a number of rounds that has quartiles and an interval."""
    if not text.isdecimal() or not LEAST_ROUNDS <= int(text) <= 9999:
        raise argparse.ArgumentTypeError(f"not a number from {LEAST_ROUNDS} to 9999")
    return int(text)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--size",
        type=size_argument,
        default="4G",
        help="memory to sample; one such block at a time is held (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=rounds_argument,
        default="101",
        metavar="N",
        help="how often each contender runs (default: %(default)s)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="write all values as pyperf's JSON")
    args = parser.parse_args()
    machine = describe(args.size)
    console = Console()
    for name, value in machine.items():
        print(f"{name}: {value}")
    if os.getloadavg()[0] > 0.5:
        print("Other processes are running: they share caches and memory bandwidth.")
    contenders: dict[str, Contender] = {}
    for kind, work in (
        ("a memfd in 4 KiB pages", measure_mapped),
        ("private memory in 2 MiB pages", measure_huge),
        ("another process's memory", measure_remote),
    ):
        with console.status(f"{format_size(args.size)} of {kind}"):
            contenders.update((c.key, c) for c in work(args.size, args.rounds))
    show(contenders, console)
    if args.output:
        dump(contenders, machine, args.output)


if __name__ == "__main__":
    main()
