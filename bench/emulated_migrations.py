# SPDX-License-Identifier: MIT
"""Do recorded migrations of a real QEMU again, between two emulated guests, and compare them.

    python bench/emulated_migrations.py RECORDS.jsonl --output FILE.jsonl [--only NAME,...]
    python bench/emulated_migrations.py RECORDS.jsonl --compare FILE.jsonl

RECORDS is tests/golden/migrations-qemu10.jsonl or
tests/golden/migration/auto-converge-qemu10.jsonl. A line is appended to the file as soon as its
migration has ended; the same command goes on where the file ends. The emulated guest has the
recorded one's RAM, preallocated at both ends, and its workload, pace and lag. The migration has its
parameters, capabilities and limit of time. What the destination prints when its migration is
cancelled ("load of migration failed") is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from pysampler.guest.process import GuestProcess
from pysampler.host.qmp_client import QmpClient
from pysampler.host.writer import append_line

POLL_S = 0.02
SETTLE_S = 1.0  # the guest writes before it is migrated, as the recorded ones did
PLATEAU_AFTER_MS = 30_000


def workload(config: dict[str, Any], wps: float) -> str:
    """Return the emulated guest's workload for a recorded one."""
    lag = f",lag={config['lag-ms']}ms" if "lag-ms" in config else ""
    common = f"wps={round(wps)},ws={config['ws-mib']}M{lag}"
    modes = {
        "uniform": f"uniform:{common}",
        "hotcold": f"hotcold:hot=10%,hits=90%,{common}",
        "seq": f"sweep:{common}",
    }
    return modes[config["mode"]]


def recorded(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a record says of its migration, whichever kind of record it is."""
    config = record["config"]
    if "result" in record:
        reply = record["result"]["query-migrate"]
        return {
            "parameters": {key: config[key] for key in ("max-bandwidth", "downtime-limit")},
            "capabilities": [],
            "wps": record["wps-profile"],
            "limit-s": config["limit-s"],
            "uri": config["uri"],
            "converged": record["result"]["converged"],
            "reply": reply,
            "throttle": None,
        }
    throttles = [percentage for _, percentage in record["throttle"] if percentage]
    paces = sorted(record["wps-before"])
    return {
        "parameters": config["parameters"],
        "capabilities": [name for name in record["capabilities"] if name != "events"],
        "wps": paces[len(paces) // 2] / config["vcpus"],
        "limit-s": 80,
        "uri": "unix",
        "converged": record["outcome"] == "completed",
        "reply": record["query-migrate"],
        "throttle": throttles[-1] if throttles else None,
    }


def preallocate(guest: GuestProcess) -> None:
    """Allocate all RAM of a guest: its zero pages are pages then, and no holes."""
    for block in guest.ready["blocks"]:
        fd = os.open(f"/proc/{guest.pid}/fd/{block['fd']}", os.O_RDWR)
        os.posix_fallocate(fd, 0, block["length"])
        os.close(fd)


def migrate(record: dict[str, Any]) -> dict[str, Any]:
    """Do a recorded migration again; return what became of it."""
    config, was = record["config"], recorded(record)
    vcpus = config.get("vcpus", 1)
    size = ("--memory", f"{config['ram-mib']}M", "--vcpus", str(vcpus))
    with tempfile.TemporaryDirectory() as folder:
        sockets = [f"unix:{folder}/{name}" for name in ("source", "destination", "migration")]
        uri = sockets[2] if was["uri"] == "unix" else "tcp:127.0.0.1:0"
        zero = 1 - config["fill-mib"] / config["ram-mib"]
        words = ("--zero", f"{zero * 100:.6f}%", "--workload", workload(config, was["wps"]))
        with (
            GuestProcess(*size, *words, "--qmp", sockets[0]) as source,
            GuestProcess(*size, "--qmp", sockets[1], "--incoming", "defer") as destination,
            QmpClient(sockets[0], 30) as qmp,
            QmpClient(sockets[1], 30) as peer,
        ):
            preallocate(source)
            preallocate(destination)
            peer.execute("migrate-incoming", {"uri": uri, "exit-on-error": False})
            if was["uri"] == "tcp":
                (address,) = peer.execute("query-migrate")["socket-address"]
                uri = f"tcp:127.0.0.1:{address['port']}"
            names = was["capabilities"]
            qmp.execute(
                "migrate-set-capabilities",
                {"capabilities": [{"capability": name, "state": True} for name in names]},
            )
            qmp.execute("migrate-set-parameters", was["parameters"])
            time.sleep(SETTLE_S)
            return _watch(qmp, source, uri, was)


def _watch(qmp: QmpClient, source: GuestProcess, uri: str, was: dict[str, Any]) -> dict[str, Any]:
    wps, began = source.speed(SETTLE_S), time.monotonic()
    qmp.execute("migrate", {"uri": uri})
    reply: dict[str, Any] = {}
    trace: list[list[float]] = []
    throttle, early = None, was["reply"]["total-time"] if not was["converged"] else None
    while True:
        reply = qmp.execute("query-migrate")
        ms = round((time.monotonic() - began) * 1000)
        throttle = reply.get("cpu-throttle-percentage", throttle)
        syncs = reply["ram"]["dirty-sync-count"] if "ram" in reply else 0
        if syncs and (not trace or trace[-1][1] != syncs):
            trace.append([ms, syncs, reply["ram"]["remaining"], throttle or 0])
        if reply["status"] in {"completed", "failed", "cancelled"}:
            break
        # One that was given up early is given up at the same time.
        if ms >= min(was["limit-s"] * 1000, early or 1 << 60):
            qmp.execute("migrate_cancel")
            break
        time.sleep(POLL_S)
    return {
        "converged": reply["status"] == "completed",
        "query-migrate": reply,
        "throttle": throttle,
        "wps-before": round(wps),
        "load-average": os.getloadavg()[0],
        "trace": trace,
    }


def compare(records: list[dict[str, Any]], results: list[dict[str, Any]]) -> None:
    """Print each migration beside its record, then the distances."""
    off, counts, verdicts, steps = [], [], 0, []
    print("  n  what                       recorded ms  emulated ms    off  syncs      throttle")
    for record, result in zip(records, results, strict=True):
        config, was, now = record["config"], recorded(record), result["result"]
        if was["converged"] != now["converged"]:
            verdicts += 1
        ms, ms_now = (reply["total-time"] for reply in (was["reply"], now["query-migrate"]))
        syncs, syncs_now = (
            reply["ram"]["dirty-sync-count"] for reply in (was["reply"], now["query-migrate"])
        )
        difference = "    -"
        if was["converged"] and now["converged"]:
            off.append(abs(ms_now / ms - 1))
            counts.append(abs(syncs_now - syncs) <= max(1, syncs / 10))
            difference = f"{(ms_now / ms - 1) * 100:+5.1f}"
        if was["throttle"] is not None:
            steps.append(abs((now["throttle"] or 0) - was["throttle"]))
        what = f"{config['mode']} {config['wps']}/s, {was['parameters']['max-bandwidth'] >> 20}"
        print(
            f"{result['n']:3}  {what:25} {ms:12} {ms_now:12} {difference} % "
            f"{syncs:3} {syncs_now:3}   {was['throttle'] or '':>4} {now['throttle'] or '':>4}"
            f"  {'' if was['converged'] == now['converged'] else 'another verdict'}"
        )
    off.sort()
    if off:
        p90 = off[min(len(off) - 1, int(len(off) * 0.9))]
        print(
            f"{len(results)} migrations; total time off by {statistics.median(off) * 100:.2f} % in "
            f"the median, {p90 * 100:.2f} % at P90, {off[-1] * 100:.2f} % at most; dirty-sync-count"
            f" within 1 or 10 % in {sum(counts)} of {len(counts)}; another verdict in {verdicts}"
        )
    if steps:
        print(f"final throttle off by, in points: {steps}")


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path)
    parser.add_argument("--output")
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--only", help="numbers of records, from 0, with commas")
    args = parser.parse_args()
    records = [json.loads(line) for line in args.records.read_text("utf-8").splitlines()]
    if args.compare is not None:
        results = [json.loads(line) for line in args.compare.read_text("utf-8").splitlines()]
        results.sort(key=lambda result: result["n"])
        compare([records[result["n"]] for result in results], results)
        return
    output = Path(args.output)
    lines = output.read_text("utf-8").splitlines() if output.exists() else []
    done = {json.loads(line)["n"] for line in lines}
    wanted = range(len(records)) if args.only is None else map(int, args.only.split(","))
    for n in wanted:
        if n not in done:
            line = {"n": n, "result": migrate(records[n])}
            append_line(args.output, json.dumps(line))
            reply = line["result"]["query-migrate"]
            print(n, reply["status"], reply.get("total-time"), flush=True)


if __name__ == "__main__":
    main()
