# SPDX-License-Identifier: MIT
"""What the emulated guest can do, and what measuring it costs it, in its own writes per second.

    python bench/guest.py [--rounds 10] [rate] [pace] [cost] [qmp]

rate: uniform writes of one vCPU flat out over 1 GiB of 4 KiB pages; wanted 3 million a second.
pace: the largest error of a second's writes; wanted 0.5 % while a core is free.
cost: a vCPU flat out with and without a measurement, in turns; the loss is the median over
    the pairs. Wanted: sampling at 512 pages per GiB <= 1 %. The exact modes' cost is reported.
qmp: a vCPU at 500k writes a second while one connection sends 5000 commands a second; wanted:
    its rate within 1 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler import Mode, sample
from pysampler.sampler import Sampler
from pysampler.source import find_blocks
from pysampler.tracking import exact_observer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTS = ("rate", "pace", "cost", "qmp")
MEMORY = "1G"


class Guest:
    """A `pysampler guest` process and its counters."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pysampler", "guest", f"--memory={MEMORY}", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ready: dict[str, Any] = json.loads(self.process.stdout.readline())
        fd = os.open(f"/proc/{self.process.pid}/fd/{self.ready['counters']['fd']}", os.O_RDONLY)
        self._slots = np.memmap(os.fdopen(fd, "rb"), dtype=np.uint64, mode="r").reshape(-1, 8)

    def rate_during(self, work: Callable[[], object]) -> float:
        """Return the writes a second of all vCPUs while ``work`` is done."""
        writes, start = int(self._slots[:, 0].sum()), time.monotonic()
        work()
        elapsed = time.monotonic() - start
        return (int(self._slots[:, 0].sum()) - writes) / elapsed


@contextmanager
def guest(*arguments: str) -> Iterator[Guest]:
    """Run a guest."""
    made = Guest(*arguments)
    try:
        time.sleep(0.5)
        yield made
    finally:
        made.process.terminate()
        made.process.wait()


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
        rates = [subject.rate_during(second) / 1e6 for _ in range(rounds)]
    low = min(rates)
    figure = f"{statistics.median(rates):.1f} M/s, least {low:.1f} M/s"
    report("uniform, wps=max, 1 GiB", figure, ">= 3 M/s", met=low >= 3)


def pace(rounds: int) -> None:
    """Measure how well the pace is held."""
    for wps in ("1k", "10k", "500k", "3M"):
        asked = int(wps.replace("k", "000").replace("M", "000000"))
        with guest(f"--workload=uniform:wps={wps}") as subject:
            errors = [abs(subject.rate_during(second) / asked - 1) * 100 for _ in range(rounds)]
        figure = f"median {statistics.median(errors):.3f} %, most {max(errors):.3f} %"
        report(f"pace, wps={wps}", figure, "<= 0.5 %", met=max(errors) <= 0.5)


def cost(rounds: int) -> None:
    """Measure what measuring costs the guest."""
    with guest("--workload=uniform:wps=max") as subject:
        pid = subject.process.pid
        blocks = find_blocks(pid)

        def by_sampling() -> None:
            sample(blocks, calc_time="1s", sample_pages=512)

        def exactly(mode: Mode) -> Callable[[], None]:
            def measure() -> None:
                with Sampler(exact_observer(blocks, mode, pid=pid), 1000) as sampler:
                    for _ in sampler:
                        pass

            return measure

        contenders: list[tuple[str, Callable[[], None], bool]] = [
            ("nothing (noise)", second, False),
            ("page-sampling, 512 per GiB", by_sampling, True),
            ("dirty-bitmap", exactly(Mode.DIRTY_BITMAP), False),
            ("dirty-ring", exactly(Mode.DIRTY_RING), False),
        ]
        for name, work, is_wanted in contenders:
            losses = []
            for _ in range(rounds):
                before = subject.rate_during(second)
                during = subject.rate_during(work)
                after = subject.rate_during(second)
                losses.append((1 - during / ((before + after) / 2)) * 100)
            low, loss, high = np.percentile(losses, [25, 50, 75])
            figure = f"{loss:.2f} % (quartiles {low:.2f} to {high:.2f})"
            report(f"cost of {name}", figure, "<= 1 %" if is_wanted else "", met=loss <= 1)


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
            rates = [subject.rate_during(second) for _ in range(rounds)]
            commands = sent[0] / (time.monotonic() - begin)
            stop.set()
            thread.join()
            client.close()
    errors = [abs(rate / 500_000 - 1) * 100 for rate in rates]
    figure = f"median {statistics.median(errors):.3f} %, most {max(errors):.3f} %"
    report(f"pace at {commands:.0f} commands/s", figure, "<= 1 %", met=max(errors) <= 1)


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
        {"rate": rate, "pace": pace, "cost": cost, "qmp": qmp}[part](args.rounds)
    print(f"load {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()
