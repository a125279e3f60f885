# SPDX-License-Identifier: MIT
"""What the emulated guest can do, and what measuring it costs it, in its own writes per second.

    python bench/guest.py [--rounds 10] [rate] [pace] [cost] [logged] [qmp] [large]

rate: uniform writes of one vCPU flat out over 1 GiB of 4 KiB pages; wanted 3 million a second.
pace: the largest error of a second's writes; wanted 0.5 % while a core is free.
cost: a vCPU flat out with and without a measurement of 1 s, in turns; the loss is the median
    over the pairs. Wanted: sampling at 512 pages per GiB <= 1 %, the exact modes, which read the
    log that the vCPU itself keeps, <= 30 %.
logged: the pace, as above, while an exact mode measures.
qmp: a vCPU at 500k writes a second while one connection sends 5000 commands a second; wanted:
    its rate within 1 %.
large: a guest of 16 GiB, 80 % of it zero, with 8 vCPUs at 20k writes a second each.

A core is free in a second in which the vCPU waited less than 10 ms in the run queue, as its
schedstat tells; other seconds are not judged, and their number is printed. The cost is a loss of
writes per second in which the vCPU was not waiting for a core; what a measurement's own thread
takes away from a machine without a free core shows as "raw".
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pysampler import Mode, sample
from pysampler.guest.process import GuestProcess
from pysampler.measuring import exact_observer
from pysampler.memory.source import find_blocks
from pysampler.sampling.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Stretch(NamedTuple):
    """What the vCPUs did for some time; seconds, also those that they waited for a core."""

    seconds: float
    writes: int
    waited: float

    @property
    def raw_rate(self) -> float:
        """Writes a second."""
        return self.writes / self.seconds

    @property
    def rate(self) -> float:
        """Writes per second that one vCPU was not waiting for a core."""
        return self.writes / (self.seconds - self.waited)

    def error(self, asked: float) -> float:
        """Return how far the rate is from the one asked for, in percent."""
        return abs(self.raw_rate / asked - 1) * 100

    @property
    def core_was_free(self) -> bool:
        """Whether the pace can be judged."""
        return self.waited < 0.01 * self.seconds


class TimedGuest(GuestProcess):
    """A `pysampler guest` whose writes are counted over a stretch of time."""

    def during(self, work: Callable[[], object]) -> Stretch:
        """Return what the vCPUs, taken together, did while ``work`` was done."""
        waited, (start, writes) = self._waited(), self._now()
        work()
        end, writes_then = self._now()
        return Stretch(end - start, writes_then - writes, self._waited() - waited)

    def _now(self) -> tuple[float, int]:
        """Return time and writes of one moment; not if something came in between."""
        while True:
            before = time.monotonic()
            writes = self.writes()
            if (after := time.monotonic()) - before < 1e-4:
                return after, writes

    def _waited(self) -> float:
        waited = 0
        for vcpu in self.ready["vcpus"]:
            path = f"/proc/{self.pid}/task/{vcpu['thread-id']}/schedstat"
            with open(path, encoding="ascii") as schedstat:
                waited += int(schedstat.read().split()[1])
        return waited / 1e9


@contextmanager
def guest(*arguments: str, memory: str = "1G") -> Iterator[TimedGuest]:
    """Run a guest."""
    with TimedGuest(f"--memory={memory}", *arguments) as made:
        time.sleep(1)
        yield made


def second() -> None:
    """Do nothing for a second."""
    time.sleep(1)


def report(what: str, figure: str, wanted: str = "", *, met: bool = True) -> None:
    """Print a line of the table."""
    verdict = f"  wanted {wanted}: {'met' if met else 'MISSED'}" if wanted else ""
    print(f"{what:<34} {figure:<36}{verdict}", flush=True)


def rate(rounds: int) -> None:
    """Measure the rate of one vCPU flat out."""
    with guest("--workload=uniform:wps=max") as subject:
        rates = [subject.during(second).rate / 1e6 for _ in range(rounds)]
    low = min(rates)
    figure = f"{statistics.median(rates):.1f} M/s, least {low:.1f} M/s"
    report("uniform, wps=max, 1 GiB", figure, ">= 3 M/s", met=low >= 3)


def pace(rounds: int) -> None:
    """Measure how well the pace is held."""
    for wps in ("1k", "10k", "500k", "3M"):
        asked = int(wps.replace("k", "000").replace("M", "000000"))
        with guest(f"--workload=uniform:wps={wps}") as subject:
            judge_pace(
                f"pace, wps={wps}", [subject.during(second) for _ in range(rounds)], asked, 0.5
            )


def judge_pace(what: str, stretches: list[Stretch], asked: float, limit: float) -> None:
    """Report the error of those stretches in which a core was free."""
    errors = [stretch.error(asked) for stretch in stretches if stretch.core_was_free]
    seconds = f"of {len(errors)} s, {len(stretches) - len(errors)} s without a core"
    if not errors:
        report(what, seconds)
        return
    figure = f"most {max(errors):.3f} % {seconds}"
    report(what, figure, f"<= {limit} %", met=max(errors) <= limit)


def exactly(subject: TimedGuest, mode: Mode) -> Callable[[], None]:
    """Return what measures a guest for a second in an exact mode."""
    blocks = find_blocks(subject.pid)

    def measure() -> None:
        with Sampler(exact_observer(blocks, mode, pid=subject.pid), 1000) as sampler:
            for _ in sampler:
                pass

    return measure


def cost(rounds: int) -> None:
    """Measure what measuring costs the guest."""
    with guest("--workload=uniform:wps=max") as subject:
        blocks = find_blocks(subject.pid)

        def by_sampling() -> None:
            sample(blocks, calc_time="1s", sample_pages=512)

        contenders: list[tuple[str, Callable[[], None], float]] = [
            ("nothing (noise)", second, 0),
            ("page-sampling, 512 per GiB", by_sampling, 1),
            ("dirty-bitmap", exactly(subject, Mode.DIRTY_BITMAP), 30),
            ("dirty-ring", exactly(subject, Mode.DIRTY_RING), 30),
        ]
        for name, work, limit in contenders:
            losses, raw = [], []
            for _ in range(rounds):
                before, during, after = (subject.during(do) for do in (second, work, second))
                losses.append((1 - 2 * during.rate / (before.rate + after.rate)) * 100)
                raw.append((1 - 2 * during.raw_rate / (before.raw_rate + after.raw_rate)) * 100)
            low, loss, high = np.percentile(losses, [25, 50, 75])
            figure = f"{loss:.2f} % ({low:.2f} to {high:.2f}; raw {statistics.median(raw):.2f} %)"
            report(f"cost of {name}", figure, f"<= {limit} %" if limit else "", met=loss <= limit)


def logged(rounds: int) -> None:
    """Measure how well the pace is held while the vCPU logs its writes."""
    for wps in (500_000, 3_000_000):
        for mode in (Mode.DIRTY_BITMAP, Mode.DIRTY_RING):
            with guest(f"--workload=uniform:wps={wps}") as subject:
                stretches = [subject.during(exactly(subject, mode)) for _ in range(rounds)]
            judge_pace(f"pace {wps}, {mode.value}", stretches, wps, 0.5)


def qmp(rounds: int) -> None:
    """Measure the pace of a vCPU under a storm of commands."""
    with tempfile.TemporaryDirectory() as directory:
        address = f"{directory}/guest.sock"
        with guest("--workload=uniform:wps=500k", f"--qmp=unix:{address}") as subject:
            stop, sent = threading.Event(), [0]
            client = socket.socket(socket.AF_UNIX)
            client.connect(address)
            replies = client.makefile("rb")
            replies.readline()
            client.sendall(b'{"execute": "qmp_capabilities"}')
            replies.readline()

            def storm() -> None:
                start = time.monotonic()
                while not stop.is_set():
                    # Batches of 5 ms: a client of this rate pipelines.
                    due = int((time.monotonic() - start) * 5000) - sent[0]
                    client.sendall(b'{"execute": "query-status"}\n' * due)
                    for _ in range(due):
                        replies.readline()
                    sent[0] += due
                    time.sleep(0.005)

            thread = threading.Thread(target=storm)
            thread.start()
            begin = time.monotonic()
            stretches = [subject.during(second) for _ in range(rounds)]
            commands = sent[0] / (time.monotonic() - begin)
            stop.set()
            thread.join()
            client.close()
    judge_pace(f"pace at {commands:.0f} commands/s", stretches, 500_000, 1)


def large(rounds: int) -> None:
    """Start a large guest with many vCPUs."""
    start = time.monotonic()
    workload = "uniform:ws=2G,wps=20k"
    with guest("--zero=80%", "--vcpus=8", f"--workload={workload}", memory="16G") as subject:
        report("16 GiB, 3.2 of it filled, 8 vCPUs", f"ready after {time.monotonic() - start:.1f} s")
        rates = [subject.during(second).raw_rate for _ in range(rounds)]
    report("its writes, all vCPUs", f"median {statistics.median(rates):.0f}/s of 160000/s asked")


PARTS = {"rate": rate, "pace": pace, "cost": cost, "logged": logged, "qmp": qmp, "large": large}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", default=[])
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, load {os.getloadavg()[0]:.2f}")
    for part in args.parts or PARTS:
        PARTS[part](args.rounds)
    print(f"load {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()
