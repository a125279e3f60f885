# SPDX-License-Identifier: MIT
"""What must hold of a migration's destination, whatever arrives; and streams that nobody sends.

python tests/fuzz/migration_stream.py [--streams 1000000] [--seed 1]
"""

from __future__ import annotations

import argparse
import mmap
import random
import resource
import socket
import threading
import time

import numpy as np

from pysampler import core
from pysampler.errors import FormatError
from pysampler.migration.stream import (
    End,
    IterationEnd,
    Start,
    State,
    decode,
    encode,
    limits,
)

PAGE = 4096
NEVER = (1 << 63) - 1
SIZES = {"pc.ram": 70, "vga": 3}
MAX_STATE = 1000
MOST_GROWTH = 64 << 20  # bytes, whatever arrives
_MOST_BYTES = 1 << 18  # of a stream: they wait in the socket, as one thread sends and receives


class Destination:
    """The blocks of a guest, each between two pages that nothing may write."""

    def __init__(self) -> None:
        self.blocks = []
        self._memories = []
        for name, n in SIZES.items():
            memory = mmap.mmap(-1, (n + 2) * PAGE)
            memory[:PAGE] = memory[-PAGE:] = b"\xa5" * PAGE
            address = core.address_of(memory) + PAGE
            self.blocks.append(core.ReceivedBlock(name, address, n))
            self._memories.append(memory)

    def check(self, data: bytes) -> str:
        """Receive a stream to its end, or refuse it by FormatError; return why."""
        sending, receiving = socket.socketpair()
        with sending, receiving:
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _MOST_BYTES)
            sending.sendall(data[:_MOST_BYTES])
            sending.close()
            receiver = core.PageReceiver(receiving.fileno(), self.blocks, limits(MAX_STATE))
            refusal = ""
            try:
                while message := receiver.receive():
                    decode(message)
            except FormatError as error:
                refusal = str(error)
        assert "\n" not in refusal, "a refusal is one line"
        for memory in self._memories:
            assert memory[:PAGE] == memory[-PAGE:] == b"\xa5" * PAGE, "a page beside a block"
        return refusal


def seeds() -> list[bytes]:
    """Return streams as a source sends them, the short ones more often: they take less time."""
    start = Start(tuple((name, n * PAGE) for name, n in SIZES.items()), PAGE, 2, ("events",))
    found = []
    for dirty in ([], [], [1], [1], [2], [0, 1, 2, 40], range(48)):
        sending, receiving = socket.socketpair()
        with sending, receiving, mmap.mmap(-1, 70 * PAGE) as memory:
            for page in dirty:
                memory[page * PAGE] = page % 7
            bits = [np.full(2, (1 << 64) - 1, dtype=np.uint64) for _ in SIZES]
            address = core.address_of(memory)
            blocks = [
                core.SentBlock(name, address, words, n)
                for (name, n), words in zip(SIZES.items(), bits, strict=True)
            ]
            parts: list[bytes] = []
            reading = threading.Thread(target=_read_all, args=(receiving, parts))
            reading.start()
            sender = core.PageSender(sending.fileno(), blocks)
            sender.put(encode(start))
            sender.send(0, NEVER)
            sender.put(encode(IterationEnd(1)))
            bits[0][:1] = 0x70
            sender.send(0, NEVER)
            for message in (IterationEnd(2), State(running=True, guest=b"s" * 900), End()):
                sender.put(encode(message))
            sender.flush()
            sending.shutdown(socket.SHUT_WR)
            reading.join()
        found.append(b"".join(parts))
    return found


def _read_all(receiving: socket.socket, parts: list[bytes]) -> None:
    while part := receiving.recv(1 << 20):
        parts.append(part)


def words_of(data: bytes) -> list[int]:
    """Return where the words of a whole stream are, page records' and messages'."""
    found, at = [], 0
    while at < len(data):
        word = int.from_bytes(data[at : at + 8], "little")
        found.append(at)
        if word & 0x80:
            at += 8 + (word >> 24)
            continue
        end, whole = at + (word >> 8 & 0xFFFF), 0
        while at < end:
            word = int.from_bytes(data[at : at + 8], "little")
            found.append(at)
            named = 1 + data[at + 8] if word & 2 else 0
            whole += not word & 1
            at += 8 + named + (word & 1)
        at += whole * PAGE
    return found


LENGTHS = (0, 1, 7, 8, 9, 17, 18, 69, 70, 71, 255, 256, 4096, 32767, 32768, 32769, 65535)
UPPER = (*LENGTHS, 1 << 20, 1 << 31, 1 << 32, (1 << 40) - 1)


def mutate(rng: random.Random, corpus: list[tuple[bytes, list[int]]]) -> bytes:
    """Return a stream with some bits, lengths or parts changed."""
    data, words = rng.choice(corpus)
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(6)
        at = rng.choice(words)
        if kind == 0:  # a bit of a word, where a change matters most
            place = min(at + rng.randrange(18), len(changed) - 1)
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:  # any bit
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        elif kind == 2:  # a length of records, or the kind of a message
            changed[at + 1 : at + 3] = rng.choice(LENGTHS).to_bytes(2, "little")
        elif kind == 3:  # a number of a page, or a length of a message
            changed[at + 3 : at + 8] = rng.choice(UPPER).to_bytes(5, "little")
        elif kind == 4:  # cut off
            del changed[rng.randint(1, len(changed)) :]
        else:  # another one's end
            other, others = rng.choice(corpus)
            changed[at:] = other[rng.choice(others) :]
    return bytes(changed)


def main() -> None:
    """Mutate and check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=time.time_ns() & 0xFFFFFFFF)
    args = parser.parse_args()
    print(f"{args.streams} mutated streams, --seed {args.seed}")
    rng = random.Random(args.seed)
    corpus = [(data, words_of(data)) for data in seeds()]
    destination = Destination()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = sum(bool(destination.check(mutate(rng, corpus))) for _ in range(args.streams))
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    print(f"{refused} refused, {args.streams - refused} received; {growth >> 20} MiB more memory")
    assert growth < MOST_GROWTH, "memory grows with what arrives"


if __name__ == "__main__":
    main()
