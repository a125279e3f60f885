# SPDX-License-Identifier: MIT
"""What makes a migration converge, and the work that it costs the guest.

    chrt -r 1 python bench/convergence.py [share] [work] [--lag 0] [--rounds 1] [--output FILE]

share: how exactly a throttled vCPU sleeps for the share of time that was asked for: by what it says
    of itself; of one with a pace (lag=0) by its writes; of one without by the time for which it
    ran, or waited for a core, as its schedstat tells. Wanted: within 1 point. The writes of the
    latter are printed as well: more are lost, as a CPU is slower just after a sleep.
work: total time and work lost of migrations between two emulated guests, by workload, control and
    setting. Work lost is 1 - the writes done while it was migrated / those that its pace would
    have done in that time. Then the work that each control loses for the same total time,
    interpolated between its settings.

Without a name both are done. A migration that has not ended after 40 s is cancelled, and takes no
part in the interpolation. With --rounds, medians are printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pysampler.guest import BlockSpec, Content, Guest, Phases, allocate
from pysampler.guest.phases import assign
from pysampler.guest.process import GuestProcess
from pysampler.host.qmp_client import QmpClient

if TYPE_CHECKING:
    from collections.abc import Iterator

PERCENTAGES = (20, 30, 50, 70, 80, 90, 95, 99)
SHARE_S = 4.0

MEMORY = "256M"  # half of it zero
BANDWIDTH = 40 << 20
DOWNTIME_MS = 200
WPS = 20_000
LIMIT_S = 40
POLL_S = 0.02
SETTLE_S = 0.5
WORKLOADS = {
    "uniform": "uniform:ws=128M",
    "hotcold": "hotcold:hot=10%,hits=90%,ws=128M",
    "sweep": "sweep:ws=128M",
}


class Setting(NamedTuple):
    """A control with its parameters."""

    control: str
    capability: str
    label: str
    parameters: dict[str, Any]


def _aggression(level: float, ratio: str) -> Setting:
    name = "x-aggression" + (", averages" if ratio == "averages" else "")
    parameters = {"x-aggression-level": level, "x-aggression-ratio": ratio}
    return Setting(name, "x-aggression", f"level {level:g}", parameters)


def _auto_converge(initial: int, increment: int) -> Setting:
    parameters = {"cpu-throttle-initial": initial, "cpu-throttle-increment": increment}
    return Setting("auto-converge", "auto-converge", f"{initial} + {increment} %", parameters)


def _dirty_limit(quota: int) -> Setting:
    return Setting("dirty-limit", "dirty-limit", f"{quota} MiB/s", {"vcpu-dirty-limit": quota})


def settings(workload: str) -> list[Setting]:
    """Return what is tried with a workload."""
    tried = [_aggression(level, "samples") for level in (0, 0.25, 0.75)]
    if workload == "uniform":
        tried += [_aggression(level, "averages") for level in (0, 0.25, 0.75)]
    tried += [_auto_converge(*steps) for steps in ((20, 10), (50, 20), (80, 10))]
    return tried + [_dirty_limit(quota) for quota in (1, 5, 20)]


# ---- share ----


class Shares(NamedTuple):
    """What a throttle took, in percent.

    Attributes:
        says: of the time, as the vCPU says.
        idle: of the time, as the kernel says.
        writes: of its writes.
    """

    says: float
    idle: float
    writes: float


def share() -> None:
    """Print the table of shares."""
    print("         with a pace            flat out")
    print("asked %   says %  writes %       says %  not run %  writes %   largest error, points")
    worst = 0.0
    with _guest(f"uniform:wps={WPS},lag=0") as paced, _guest("uniform:wps=max") as flat_out:
        for percentage in PERCENTAGES:
            one, other = _shares(paced, percentage), _shares(flat_out, percentage)
            judged = (one.says, one.writes, other.says, other.idle)
            error = max(abs(x - percentage) for x in judged)
            worst = max(worst, error)
            print(
                f"{percentage:7}  {one.says:7.2f} {one.writes:9.2f}      {other.says:7.2f}  "
                f"{other.idle:9.2f} {other.writes:9.2f}  {error:22.2f}",
                flush=True,
            )
    print(f"wanted within 1 point: {'met' if worst <= 1 else 'MISSED'}")


@contextmanager
def _guest(workload: str) -> Iterator[Guest]:
    ram = allocate([BlockSpec("pc.ram", 64 << 20)], zero=0.0, content=Content.RANDOM, seed=1)
    guest = Guest(ram, Phases.steady(assign([workload], 1)), 1)
    guest.stop()
    try:
        yield guest
    finally:
        guest.close()


def _shares(guest: Guest, percentage: int) -> Shares:
    guest.cont()
    free = _counted(guest, SHARE_S / 4)[0]
    guest.throttle(percentage)
    time.sleep(0.1)
    writes, slept, on_cpu = _counted(guest, SHARE_S)
    guest.throttle(0)
    free = (free + _counted(guest, SHARE_S / 4)[0]) / 2
    guest.stop()
    return Shares(100 * slept, 100 * (1 - on_cpu), 100 * (1 - writes / free))


def _counted(guest: Guest, seconds: float) -> tuple[float, float, float]:
    """Return writes a second, and the shares of time that it slept and that it wanted a core."""
    ns, *before = _now(guest)
    time.sleep(seconds)
    then, *after = _now(guest)
    writes, slept, on_cpu = (b - a for a, b in zip(before, after, strict=True))
    return writes * 1e9 / (then - ns), slept / (then - ns), on_cpu / (then - ns)


def _now(guest: Guest) -> tuple[int, int, int, int]:
    path = f"/proc/self/task/{guest.vcpus()[0].thread_id}/schedstat"
    ran, waited = Path(path).read_text("ascii").split()[:2]
    on_cpu = int(ran) + int(waited)
    return time.monotonic_ns(), guest.writes()[0], guest.throttled_ns()[0], on_cpu


# ---- work ----


def migrate(workload: str, lag: str, setting: Setting) -> tuple[float, float] | None:
    """Return total time in s and the share of work lost; None if it does not end."""
    size = ("--memory", MEMORY)
    words = ("--zero", "50%", "--workload", f"{WORKLOADS[workload]},wps={WPS},lag={lag}")
    with tempfile.TemporaryDirectory() as folder:
        qmp, uri = f"unix:{folder}/qmp", f"unix:{folder}/migration"
        with (
            GuestProcess(*size, *words, "--qmp", qmp) as source,
            GuestProcess(*size, "--incoming", uri),
            QmpClient(qmp, 30) as client,
        ):
            on = {"capabilities": [{"capability": setting.capability, "state": True}]}
            client.execute("migrate-set-capabilities", on)
            common = {"max-bandwidth": BANDWIDTH, "downtime-limit": DOWNTIME_MS}
            client.execute("migrate-set-parameters", common | setting.parameters)
            time.sleep(SETTLE_S)
            writes, began = source.writes(), time.monotonic()
            client.execute("migrate", {"uri": uri})
            while True:
                reply = client.execute("query-migrate")
                if reply["status"] == "completed":
                    break
                if time.monotonic() > began + LIMIT_S:
                    client.execute("migrate_cancel")
                    return None
                if reply["status"] == "failed":
                    raise SystemExit(f"{workload}, {setting}: {reply}")
                time.sleep(POLL_S)
            seconds = reply["total-time"] / 1000
            return seconds, 1 - (source.writes() - writes) / (WPS * seconds)


def work(lag: str, rounds: int, only: list[str], output: Path | None) -> None:
    """Migrate with each setting, and print the tables."""
    for workload in only:
        print(f"\n{WORKLOADS[workload]},wps={WPS},lag={lag}")
        print(f"{'control':<24} {'setting':<12} {'total time, s':>14} {'work lost, %':>13}")
        curves: dict[str, list[tuple[float, float]]] = {}
        for setting in settings(workload):
            results = [migrate(workload, lag, setting) for _ in range(rounds)]
            ended = [result for result in results if result is not None]
            if output is not None:
                row = [workload, lag, setting.control, setting.label, results]
                with output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            if 2 * len(ended) <= rounds:
                print(f"{setting.control:<24} {setting.label:<12} {f'over {LIMIT_S}':>14}")
                continue
            seconds, lost = (statistics.median(column) for column in zip(*ended, strict=True))
            curves.setdefault(setting.control, []).append((seconds, lost))
            print(
                f"{setting.control:<24} {setting.label:<12} {seconds:14.1f} {lost * 100:13.1f}",
                flush=True,
            )
        _print_at_equal_time(curves)


def _print_at_equal_time(curves: dict[str, list[tuple[float, float]]]) -> None:
    """Print what each control loses at total times that most of them reach."""
    begins = sorted(min(curve)[0] for curve in curves.values())
    ends = sorted(max(curve)[0] for curve in curves.values())
    first, last = begins[-1], ends[0]
    if first > last:  # no time is common to all
        first, last = begins[len(begins) // 2], ends[len(ends) // 2]
    times = [first, (first + last) / 2, last]
    print(f"{'work lost, %, at':<37}" + "".join(f"{seconds:8.1f} s" for seconds in times))
    for control, curve in curves.items():
        values = [_interpolated(sorted(curve), seconds) for seconds in times]
        cells = "".join(f"{'-' if v is None else format(v * 100, '.1f'):>10}" for v in values)
        print(f"{control:<37}{cells}", flush=True)


def _interpolated(curve: list[tuple[float, float]], seconds: float) -> float | None:
    if seconds == curve[0][0]:
        return curve[0][1]
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 < seconds <= x1:
            return y0 + (y1 - y0) * (seconds - x0) / (x1 - x0)
    return None


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["share", "work", []], metavar="share|work")
    parser.add_argument("--lag", default="0")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--output", type=Path, help="append each result as a line of JSON")
    args = parser.parse_args()
    what = args.what or ["share", "work"]
    if "share" in what:
        share()
    if "work" in what:
        work(args.lag, args.rounds, args.only, args.output)


if __name__ == "__main__":
    main()
