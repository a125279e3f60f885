# SPDX-License-Identifier: MIT
"""QMP commands a second on one connection: pipelined, and one at a time.

    python bench/qmp.py unix:guest.sock

Against any QMP server, so a QEMU too. Prints one line of JSON for each way.
"""

from __future__ import annotations

import argparse
import json
import platform
import socket
import threading
import time
from typing import IO

NEGOTIATE = b'{"execute": "qmp_capabilities"}'
COMMAND = b'{"execute": "query-status"}'


def connect(address: str) -> tuple[socket.socket, IO[bytes]]:
    """Connect and negotiate."""
    kind, _, where = address.partition(":")
    if kind == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(where)
    else:
        host, _, port = where.rpartition(":")
        connection = socket.create_connection((host.strip("[]"), int(port)))
    replies = connection.makefile("rb")
    replies.readline()
    connection.sendall(NEGOTIATE)
    assert b"return" in replies.readline()
    return connection, replies


def one_at_a_time(connection: socket.socket, replies: IO[bytes], seconds: float) -> float:
    """Return commands a second, each sent when the last is answered."""
    n = 0
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        connection.sendall(COMMAND)
        assert b"return" in replies.readline()
        n += 1
    return n / elapsed


def pipelined(connection: socket.socket, replies: IO[bytes], seconds: float) -> float:
    """Return commands a second, as many under way as the sockets hold."""
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            connection.sendall(COMMAND * 100)
        connection.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    start = time.perf_counter()
    sender.start()
    n = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        assert b"return" in replies.readline()
        n += 1
    stop.set()
    # The sender may be waiting for room that only reading makes.
    while replies.readline():
        pass
    sender.join()
    return n / elapsed


def main() -> None:
    """Measure both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("address", help="unix:PATH or tcp:HOST:PORT")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each way")
    args = parser.parse_args()
    for way in (one_at_a_time, pipelined):
        connection, replies = connect(args.address)
        rate = way(connection, replies, args.seconds)
        print(
            json.dumps(
                {
                    "way": way.__name__.replace("_", "-"),
                    "commands-per-second": round(rate),
                    "seconds": args.seconds,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                }
            )
        )
        replies.close()
        connection.close()


if __name__ == "__main__":
    main()
