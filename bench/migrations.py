# SPDX-License-Identifier: MIT
"""Record real pre-copy migrations, for `pysampler predict --evaluate FILE`.

    python bench/migrations.py --qemu PATH --seed 1 --workloads 22 --output FILE.jsonl

Between two QEMUs of this machine (TCG, one vCPU, RAM preallocated on both sides) the guest of
migration_guest.c is migrated at a known pace of writing. A record is appended to the file as soon
as its migration has ended; the keys are those of tests/golden/migrations-qemu10.jsonl. It can be
stopped at any time: the same command goes on where the file ends. Needs gcc and qemu.qmp.

Workloads, a seed's K first: ram 1024 MiB (3 in 4) or 2048; fill 30 to 80 % of it; ws from 64 MiB to
fill, log-uniform; wps from 1000 to 60000, log-uniform; mode uniform, hotcold and seq (3 in 10
each) or burst (1 in 10; wps is the mean over bursts and pauses). The working set is the
lower end of what is filled, the hot tenth at its lower end.

Six migrations of each: downtime-limit 100, 300 or 1000 ms; tcp 1 in 4, else a unix socket; four at
50 to 400 MiB/s, log-uniform, and two near the boundary, at 0.8 to 1.5 times the dirty
rate of one second, unless the first pass would take more than 40 s at that.

One whose guest wrote 2 % less or more than while it was profiled was disturbed, and is done again.
What destinations print when their migration is cancelled ("load of migration failed") is no error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from qemu.qmp.legacy import QEMUMonitorProtocol

from pysampler import Mode, find_blocks, theory
from pysampler.core import Hasher
from pysampler.passes import PassCount, Passes
from pysampler.plan import PROFILES, SamplePlan, draw_plan
from pysampler.ramblock import FileMemory, RAMBlock
from pysampler.sampler import Sampler
from pysampler.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

PAGE_SIZE = 4096
FILL_BASE = 16 * MIB
MODES = ("uniform", "hotcold", "seq", "burst")
BURST_S = 0.5  # and the pause after it
SAMPLE_PAGES = 8192
SUBSET_PAGES = 512
CALC_TIME_MS = 15_000
LIMIT_S = 60
MIGRATIONS = 6
POLL_S = 0.02
TRIES = 3


class GiveUpError(Exception):
    """The machine cannot do what is asked; one line for people."""


@dataclass(frozen=True)
class Workload:
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


def draw(seed: int, index: int) -> tuple[Workload, list[dict[str, Any]], int]:
    """Return a workload, the ``config`` of its migrations and a seed of its own.

    See the module's text.
    """
    rng = random.Random(f"{seed}/{index}")  # noqa: S311 - nothing secret

    def between(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(high)))

    ram = rng.choice((1024, 1024, 1024, 2048))
    fill = int(ram * rng.uniform(0.3, 0.8))
    mode = rng.choices(MODES, (3, 3, 3, 1))[0]
    workload = Workload(ram, fill, mode, int(between(64, fill)), round(between(1000, 60000)))
    dirty_rate = workload.dirty_pages(1, workload.wps) * PAGE_SIZE
    configs = []
    for i in range(MIGRATIONS):
        bandwidth = between(50, 400) * MIB
        at_boundary = dirty_rate * rng.uniform(0.8, 1.5)
        if i >= MIGRATIONS - 2 and at_boundary * 40 > fill * MIB:
            bandwidth = at_boundary
        configs.append(
            {
                "ram-mib": ram,
                "fill-mib": fill,
                "mode": mode,
                "ws-mib": workload.ws_mib,
                "wps": workload.wps,
                "max-bandwidth": round(bandwidth),
                "downtime-limit": rng.choice((100, 300, 1000)),
                "limit-s": LIMIT_S,
                "uri": rng.choice(("unix", "unix", "unix", "tcp")),
            }
        )
    return workload, configs, rng.getrandbits(64)


class Qemu:
    """A QEMU, ended with its context.

    Args:
        program: which.
        directory: for its socket.
        ram_mib: its RAM, a memfd that others can map.
        arguments: further ones.
    """

    def __init__(self, program: str, directory: str, ram_mib: int, *arguments: str) -> None:
        address = f"{directory}/qmp-{len(os.listdir(directory))}"
        self._monitor = QEMUMonitorProtocol(address, server=True)
        memory = f"memory-backend-memfd,id=ram,size={ram_mib}M,share=on,prealloc=on"
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


class Guest:
    """The guest in a running QEMU: filled, set to its workload, and counting."""

    CONTROL = 0x200000
    ORDERS = struct.Struct("<10I")  # struct control without go
    COUNTS = struct.Struct("<I3Q")

    def __init__(self, qemu: Qemu, workload: Workload, seed: int) -> None:
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


class NestedSampling:
    """Observer of a sample and, in the same passes, of a random subset of it.

    Attributes:
        subset: zero pages of the subset, then its dirty pages in each compare pass.
        n_subset: its samples.
    """

    mode = Mode.PAGE_SAMPLING
    sample_pages = SAMPLE_PAGES

    def __init__(self, block: RAMBlock, seed: int) -> None:
        profile = PROFILES["qemu"]
        plan = draw_plan([block.used_length], profile=profile, sample_pages=SAMPLE_PAGES, seed=seed)
        self.n_total_pages = plan.n_total_pages
        self.n_sampled_pages = plan.n_sampled_pages
        self.n_subset = plan.n_sampled_pages * SUBSET_PAGES // SAMPLE_PAGES
        self.subset: list[int] = []
        # The draws are independent, so that the first ones are a random subset.
        self._parts = [
            _passes(block, plan, slice(self.n_subset)),
            _passes(block, plan, slice(self.n_subset, None)),
        ]

    def warm_up(self) -> None:
        """Touch every sample."""
        for part in self._parts:
            part.warm_up()

    def baseline(self) -> PassCount:
        """Count zero pages."""
        return self._count([part.baseline() for part in self._parts])

    def compare(self) -> PassCount:
        """Count dirty pages."""
        return self._count([part.compare() for part in self._parts])

    def _count(self, counts: list[PassCount]) -> PassCount:
        self.subset.append(counts[0].pages)
        return PassCount(sum(c.pages for c in counts), sum(c.unreadable for c in counts))

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return nothing: who wrote a page does not show in it."""
        return ()

    def details(self) -> dict[str, Any]:
        """Return nothing that the records have."""
        return {}

    def close(self) -> None:
        """Close the readers."""
        for part in self._parts:
            part.close()


def _passes(block: RAMBlock, plan: SamplePlan, which: slice) -> Passes:
    return Passes(
        [block], replace(plan, vfns=(plan.vfns[0][which],)), Hasher(PROFILES["qemu"].hash), 1
    )


def profile(guest: Guest, workload: Workload, seed: int) -> dict[str, Any]:
    """Return the members of a record that all migrations of a workload share."""
    sampling = NestedSampling(guest.block, seed)
    before = guest.counts()
    with Sampler(sampling, CALC_TIME_MS) as sampler:
        *_, measured = sampler
    wps = guest.pace(before, guest.counts())
    whole = replace(measured, details={})
    subset = replace(
        whole,
        sample_pages=SUBSET_PAGES,
        n_sampled_pages=sampling.n_subset,
        n_zero_pages=sampling.subset[0],
        n_dirty_pages=tuple(sampling.subset[1:]),
    )
    return {
        "vector": whole.to_dict(),
        "vector-512": subset.to_dict(),
        "wps-profile": round(wps),
        "theory-dirty-pages": [round(workload.dirty_pages(t / 1e3, wps)) for t in whole.periods],
    }


def migrate(
    source: Qemu, guest: Guest, destination: Qemu, config: dict[str, Any], directory: str
) -> dict[str, Any]:
    """Migrate and return ``result``; the guest then goes on in the source."""
    for qemu in (source, destination):
        channels = config.get("multifd-channels")
        capability = {"capability": "multifd", "state": channels is not None}
        qemu.command("migrate-set-capabilities", capabilities=[capability])
        if channels is not None:
            qemu.command("migrate-set-parameters", multifd_channels=channels)
    source.command(
        "migrate-set-parameters",
        max_bandwidth=config["max-bandwidth"],
        downtime_limit=config["downtime-limit"],
    )
    if config["uri"] == "tcp":
        destination.command("migrate-incoming", uri="tcp:127.0.0.1:0")
        (address,) = destination.command("query-migrate")["socket-address"]
        uri = f"tcp:127.0.0.1:{address['port']}"
    else:
        uri = f"unix:{directory}/migration"
        destination.command("migrate-incoming", uri=uri)
    before, began = guest.counts(), time.monotonic()
    source.command("migrate", uri=uri)
    trace: list[list[float]] = []
    syncs = 0
    cancelled_early = False
    while True:
        reply = source.command("query-migrate")
        ms = round((time.monotonic() - began) * 1000)
        ram = reply.get("ram")
        if ram is not None and ram["dirty-sync-count"] != syncs:
            syncs = ram["dirty-sync-count"]
            keys = ("dirty-sync-count", "remaining", "transferred", "dirty-pages-rate")
            trace.append([ms, *(ram[key] for key in keys), round(ram["mbps"], 1)])
        if reply["status"] in {"completed", "failed", "cancelled"}:
            break
        cancelled_early = ms > 30_000 and is_plateau(trace, config)
        if cancelled_early or ms >= LIMIT_S * 1000:
            source.command("migrate_cancel")
            break
        time.sleep(POLL_S)
    while (last := source.command("query-migrate"))["status"] == "cancelling":
        time.sleep(POLL_S)
    status = last["status"]
    if status == "completed":
        reply = last  # it may have come before the cancellation
    if status == "failed":
        raise GiveUpError(f"QEMU's migration failed: {reply.get('error-desc', 'it says not why')}")
    if status == "completed":
        source.command("cont")
    # Not before: a guest may be stopped while it changes its counts. Its TSC stood still.
    after = guest.counts()
    return {
        "converged": status == "completed",
        "status": status,
        "cancelled-early": cancelled_early,
        "elapsed-ms": ms,
        "wps-during": round(guest.pace(before, after)),
        "load-average": round(os.getloadavg()[0], 2),
        "query-migrate": reply,
        "trace": trace,
    }


def is_plateau(trace: list[list[float]], config: dict[str, Any]) -> bool:
    """Whether the last four passes left as much as one another, and far too much."""
    remaining = [sync[2] for sync in trace[-4:]]
    threshold = config["max-bandwidth"] * config["downtime-limit"] / 1000
    return (
        len(remaining) == 4
        and min(remaining) > 3 * threshold
        and remaining[-1] > 0.95 * max(remaining)
    )


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


def record(args: argparse.Namespace, directory: str) -> Iterator[dict[str, Any]]:
    """Yield the records that the output has not."""
    kernel = build_guest(directory)
    done = []
    if os.path.exists(args.output):
        with open(args.output, "rb") as file:
            done = [json.loads(line)["config"] for line in file]
    for index in range(args.workloads):
        workload, configs, seed = draw(args.seed, index)
        if args.multifd:
            configs = [{**config, "multifd-channels": 2} for config in configs]
        configs = [config for config in configs if config not in done]
        if not configs:
            continue
        print(f"workload {index + 1} of {args.workloads}: {workload}", flush=True)
        with (
            Qemu(args.qemu, directory, workload.ram_mib, "-kernel", kernel) as source,
            contextlib.closing(Guest(source, workload, seed)) as guest,
        ):
            common = profile(guest, workload, seed)
            profiled = time.monotonic()
            for config in configs:
                age = round(time.monotonic() - profiled, 1)
                for _ in range(TRIES):
                    incoming = ("-incoming", "defer")
                    with Qemu(args.qemu, directory, workload.ram_mib, *incoming) as destination:
                        result = migrate(source, guest, destination, config, directory)
                    off = result["wps-during"] / common["wps-profile"] - 1
                    if abs(off) <= 0.02:
                        yield {
                            "config": config,
                            **common,
                            "profile-age-s": age,
                            "result": result,
                        }
                        break
                    print(f"  disturbed: the guest wrote {off:+.1%}; again", flush=True)


def main() -> int:
    """Record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="the program")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workloads", type=int, default=22)
    parser.add_argument("--multifd", action="store_true", help="with two multifd channels")
    parser.add_argument("--output", required=True, help="JSON lines; appended to")
    args = parser.parse_args()
    # So that the QEMUs end with us; a shell has its background jobs ignore SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        if shutil.which(args.qemu) is None:
            raise GiveUpError(
                f"no {args.qemu} here: apt-get install qemu-system-x86, or give --qemu PATH"
            )
        with tempfile.TemporaryDirectory() as directory:
            for one in record(args, directory):
                with open(args.output, "a", encoding="utf-8") as output:
                    output.write(json.dumps(one, separators=(",", ":")) + "\n")
                config, result = one["config"], one["result"]
                print(
                    f"  {config['max-bandwidth'] / MIB:5.1f} MiB/s, {config['downtime-limit']} ms,"
                    f" {config['uri']}: {result['status']} after {result['elapsed-ms']} ms,"
                    f" load {result['load-average']}",
                    flush=True,
                )
    except GiveUpError as error:
        print(f"migrations.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
