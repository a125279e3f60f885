# SPDX-License-Identifier: MIT
"""Migrate random guests to each other, and compare both byte for byte at the switchover.

    python bench/random_migrations.py --count 300 --seed 1

Each migration is between two new processes over a unix socket. Workload, vCPUs, blocks, content,
share of zero pages, bandwidth, downtime-limit and control are drawn. The destination is told to
`stop` before, so that it is paused when it has taken over. Then all RAM and the vCPUs' counters
must be the same in both. Prints each difference, and what was done; exits with 1 if there was one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import numpy as np

from pysampler.guest.process import GuestProcess
from pysampler.host.qmp_client import QmpClient

WORKLOADS = (
    "uniform:wps={}",
    "hotcold:hot=10%,hits=90%,wps={}",
    "zipf:theta=0.99,wps={}",
    "sweep:wps={}",
    "kv:mix=A,wps={}",
    "kv:mix=F,wps={}",
    "burst:on=20ms,off=20ms,of=uniform:wps={}",
    "silent:of=uniform:wps={}",
    "free:of=sweep:wps={}",
)
CONTROLS = ("none", "auto-converge", "dirty-limit", "x-aggression")
LIMIT_S = 60


def migrate(rng: random.Random) -> dict[str, Any]:
    """Do one migration.

    Returns:
        What was drawn, how it ended, and the differences that were found.
    """
    vcpus, mib = rng.choice((1, 4)), rng.randrange(16, 97)
    control = rng.choice(CONTROLS)
    wps = rng.choice(("500", "5k", "20k"))
    words = [f"{i}={rng.choice(WORKLOADS).format(wps)}" for i in range(vcpus)]
    shape = ["--memory", f"{mib}M", "--vcpus", str(vcpus)]
    shape += ["--block", f"vga={rng.randrange(1, 8)}M"] * rng.randrange(2)
    content = [
        "--content",
        rng.choice(("random", "text", "mixed")),
        "--seed",
        str(rng.random())[2:9],
    ]
    content += ["--zero", f"{rng.randrange(100)}%"]
    for word in words:
        content += ["--workload", word]
    # Bytes a second, ms. With less bandwidth only a control makes a busy guest converge.
    bandwidth, limit = rng.choice(((0, 300), (200 << 20, 300), (60 << 20, 1000)))
    with tempfile.TemporaryDirectory() as folder:
        sockets = [f"unix:{folder}/{name}" for name in ("source", "destination", "migration")]
        there = ("--incoming", sockets[2], "--qmp", sockets[1])
        with (
            GuestProcess(*shape, *content, "--qmp", sockets[0]) as source,
            GuestProcess(*shape, *there) as destination,
            QmpClient(sockets[0], 30) as qmp,
            QmpClient(sockets[1], 30) as peer,
        ):
            peer.execute("stop")
            if control != "none":
                capability = {"capability": control, "state": True}
                qmp.execute("migrate-set-capabilities", {"capabilities": [capability]})
            qmp.execute(
                "migrate-set-parameters", {"max-bandwidth": bandwidth, "downtime-limit": limit}
            )
            time.sleep(rng.random() / 5)
            qmp.execute("migrate", {"uri": sockets[2]})
            status = _await_end(qmp)
            differences = (
                _differences(source, destination, qmp, peer) if status == "completed" else []
            )
    return {
        "words": " ".join((*shape, *content)),
        "control": control,
        "status": status,
        "differences": differences,
    }


def _await_end(qmp: QmpClient) -> str:
    deadline = time.monotonic() + LIMIT_S
    while True:
        status: str = qmp.execute("query-migrate")["status"]
        if status in {"completed", "failed", "cancelled"}:
            return status
        if time.monotonic() > deadline:
            qmp.execute("migrate_cancel")
        time.sleep(0.02)


def _differences(
    source: GuestProcess, destination: GuestProcess, qmp: QmpClient, peer: QmpClient
) -> list[str]:
    deadline = time.monotonic() + 10
    while peer.execute("query-status")["status"] != "paused":
        if time.monotonic() > deadline:
            return ["the destination is not paused"]
        time.sleep(0.01)
    found = []
    for mine, its in zip(source.ready["blocks"], destination.ready["blocks"], strict=True):
        ours, theirs = (
            np.memmap(f"/proc/{guest.pid}/fd/{block['fd']}", np.uint64, "r")
            for guest, block in ((source, mine), (destination, its))
        )
        n_pages = np.count_nonzero((ours != theirs).reshape(-1, 512).any(axis=1))
        if n_pages:
            found.append(f"{mine['idstr']}: {n_pages} pages differ")
    writes = [
        [(vcpu["workload"], vcpu["writes"]) for vcpu in client.execute("x-query-workload")]
        for client in (qmp, peer)
    ]
    if writes[0] != writes[1]:
        found.append(f"vCPUs: {writes[0]} there, {writes[1]} here")
    return found


def main() -> int:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    ends: Counter[tuple[str, str]] = Counter()
    n_bad = 0
    for i in range(args.count):
        result = migrate(random.Random(f"{args.seed}/{i}"))  # noqa: S311 - nothing secret
        ends[result["control"], result["status"]] += 1
        if result["differences"] or result["status"] == "failed":
            n_bad += 1
            print(f"{i}: {result}", flush=True)
    for (control, status), n in sorted(ends.items()):
        print(f"{control:14} {status:10} {n:4}")
    print(f"{args.count} migrations, {n_bad} with a difference or a failure")
    return n_bad > 0


if __name__ == "__main__":
    sys.exit(main())
