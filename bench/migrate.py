# SPDX-License-Identifier: MIT
"""What sending a guest's RAM costs, beside a plain loop of the same system calls.

    python bench/migrate.py [--memory 4G] [--rounds 5] [speed] [cpu]

speed: random pages over a unix socket, from one process into fresh memory of another. The floor
    is a loop of send() of 32 pages and of recv() of as many into the mapping. Wanted: at least 0.8
    of the floor's rate.
cpu: the sender at 100 MiB/s. Wanted: at most 5 % of a CPU outside of system calls.

Both turns of a round come one after the other, in an order of chance, and figures are medians.
"""

from __future__ import annotations

import argparse
import mmap
import os
import platform
import resource
import socket
import time
from typing import TYPE_CHECKING

import numpy as np

from pysampler import core
from pysampler.benchmark.harness import Timing, run_rounds
from pysampler.units import GIB, MIB, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = 4096
CALL = 32 * PAGE
NEVER = (1 << 63) - 1
CPU_SECONDS = 5


class Memory:
    """A memfd, mapped here."""

    def __init__(self, length: int) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, length)
        self.map = mmap.mmap(self.fd, length)

    @property
    def address(self) -> int:
        """Where it is mapped."""
        return core.address_of(self.map)

    def fill(self) -> None:
        """Make all of it random."""
        words = np.frombuffer(self.map, dtype=np.uint64)
        rng = np.random.default_rng(1)
        for first in range(0, len(words), MIB):
            part = words[first : first + MIB]
            part[:] = rng.integers(1, 1 << 64, len(part), dtype=np.uint64)


class Peer:
    """A process that receives into memory of its own, and says a byte when all is there."""

    def __init__(self, length: int, receive: Callable[[socket.socket, Memory], None]) -> None:
        self.socket, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                self.socket.close()
                receive(theirs, Memory(length))
                theirs.sendall(b"!")
                code = 0
            finally:
                os._exit(code)
        theirs.close()

    def finish(self) -> None:
        """Wait for its byte."""
        self.socket.shutdown(socket.SHUT_WR)
        if self.socket.recv(1) != b"!":
            raise RuntimeError("the receiving process failed")

    def close(self) -> None:
        """Wait for its end."""
        self.socket.close()
        os.waitpid(self._pid, 0)


def receive_stream(receiving: socket.socket, memory: Memory) -> None:
    """Receive as a destination does."""
    block = core.ReceivedBlock("pc.ram", memory.address, len(memory.map) // PAGE)
    receiver = core.PageReceiver(receiving.fileno(), [block], {1: 0})
    while receiver.receive():
        pass


def receive_plainly(receiving: socket.socket, memory: Memory) -> None:
    """Receive the floor's bytes."""
    view = memoryview(memory.map)
    for at in range(0, len(view), CALL):
        receiving.recv_into(view[at : at + CALL], CALL, socket.MSG_WAITALL)


def sender_of(sending: socket.socket, memory: Memory, link_speed: int = 0) -> core.PageSender:
    """Return a sender of all of the memory, which has begun its stream."""
    n_pages = len(memory.map) // PAGE
    dirty = np.full(-(-n_pages // 64), (1 << 64) - 1, dtype=np.uint64)
    block = core.SentBlock("pc.ram", memory.address, dirty, n_pages, memory.fd)
    sender = core.PageSender(sending.fileno(), [block], link_speed)
    sender.put(core.message_bytes(1, b""))
    return sender


def send_stream(sending: socket.socket, memory: Memory) -> None:
    """Send as a source does."""
    sender = sender_of(sending, memory)
    sender.send(0, NEVER)
    sender.flush()


def send_plainly(sending: socket.socket, memory: Memory) -> None:
    """Send the same pages in the floor's way."""
    view = memoryview(memory.map)
    for at in range(0, len(view), CALL):
        sending.sendall(view[at : at + CALL])


class Turn:
    """One way to move the memory, timed."""

    def __init__(
        self,
        memory: Memory,
        send: Callable[[socket.socket, Memory], None],
        receive: Callable[[socket.socket, Memory], None],
    ) -> None:
        self._memory, self._send, self._receive = memory, send, receive
        self._peer: Peer | None = None
        n_pages = len(memory.map) // PAGE
        self.timing = Timing(self.move, n_pages, time.perf_counter_ns, self.prepare)

    def prepare(self) -> None:
        """Start the other process; its memory is fresh."""
        self.close()
        self._peer = Peer(len(self._memory.map), self._receive)

    def move(self) -> None:
        """Send, and wait until all has been received."""
        if self._peer is not None:
            self._send(self._peer.socket, self._memory)
            self._peer.finish()

    def close(self) -> None:
        """End the other process."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def __str__(self) -> str:
        rate = PAGE / self.timing.median * 1e9 / GIB
        return f"{rate:.2f} GiB/s (spread {self.timing.spread:.0%})"


def speed(memory: Memory, rounds: int) -> None:
    """Compare the stream with the floor."""
    stream = Turn(memory, send_stream, receive_stream)
    floor = Turn(memory, send_plainly, receive_plainly)
    for _ in run_rounds([stream.timing, floor.timing], rounds):
        pass
    stream.close()
    floor.close()
    ratio = floor.timing.median / stream.timing.median
    met = "met" if ratio >= 0.8 else "MISSED"
    print(f"stream {stream}, floor {floor}: {ratio:.3f} of it  wanted >= 0.8: {met}")


def cpu(memory: Memory, rounds: int) -> None:
    """Measure the sender's own time at 100 MiB/s."""
    shares = []
    for _ in range(rounds):
        peer = Peer(len(memory.map), receive_stream)
        sender = sender_of(peer.socket, memory, 100 * MIB)
        before, begin = resource.getrusage(resource.RUSAGE_THREAD), time.monotonic_ns()
        sender.send(0, begin + CPU_SECONDS * 10**9)
        after, seconds = (
            resource.getrusage(resource.RUSAGE_THREAD),
            (time.monotonic_ns() - begin) / 1e9,
        )
        user = (after.ru_utime - before.ru_utime) / seconds
        system = (after.ru_stime - before.ru_stime) / seconds
        shares.append((user, system, sender.transferred / seconds / MIB))
        sender.flush()
        peer.finish()
        peer.close()
    user, system, rate = np.median(shares, axis=0)
    met = "met" if user <= 0.05 else "MISSED"
    print(
        f"at {rate:.1f} MiB/s: {user:.2%} of a CPU beside {system:.2%} in system calls"
        f"  wanted <= 5 %: {met}"
    )


PARTS = {"speed": speed, "cpu": cpu}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", default=[])
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, Linux {platform.release()}, load {os.getloadavg()[0]:.2f}")
    memory = Memory(parse_size(args.memory))
    memory.fill()
    for part in args.parts or PARTS:
        PARTS[part](memory, args.rounds)
    print(f"load {os.getloadavg()[0]:.2f} at the end")


if __name__ == "__main__":
    main()
