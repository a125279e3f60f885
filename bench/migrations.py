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
import contextlib
import json
import math
import os
import random
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

from migration_guest import (
    MODES,
    PAGE_SIZE,
    GiveUpError,
    GuestConfig,
    Qemu,
    QemuGuest,
    build_guest,
    prepare,
)
from migration_profile import profile

from pysampler.host.writer import append_line
from pysampler.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT_S = 60
MIGRATIONS = 6
POLL_S = 0.02
TRIES = 3


def draw(seed: int, index: int) -> tuple[GuestConfig, list[dict[str, Any]], int]:
    """Return a workload, the ``config`` of its migrations and a seed of its own.

    See the module's text.
    """
    rng = random.Random(f"{seed}/{index}")  # noqa: S311 - nothing secret

    def between(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(high)))

    ram = rng.choice((1024, 1024, 1024, 2048))
    fill = int(ram * rng.uniform(0.3, 0.8))
    mode = rng.choices(MODES, (3, 3, 3, 1))[0]
    workload = GuestConfig(ram, fill, mode, int(between(64, fill)), round(between(1000, 60000)))
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


def migrate(
    source: Qemu, guest: QemuGuest, destination: Qemu, config: dict[str, Any], directory: str
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
            contextlib.closing(QemuGuest(source, workload, seed)) as guest,
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
    try:
        prepare(args.qemu)
        with tempfile.TemporaryDirectory() as directory:
            for one in record(args, directory):
                append_line(args.output, json.dumps(one, separators=(",", ":")))
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
