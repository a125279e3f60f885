# SPDX-License-Identifier: MIT
"""Guests that write faster than their link converge, by each of the three controls.

The sweep writes each page of 64 MiB in turn, a little less than twice as fast as the link sends. It
begins with the migration, so at the end of the bulk pass nearly all is dirty again, and the sender
goes ahead of the sweep from there on: each page is clean when it is written.
"""

import time

import numpy as np
import pytest
from pair import ENDED, Pair, make_guest

PAGES = 16384
BANDWIDTH = 16 << 20  # bytes a second: 416 pages in a window
WPS = 7900
SWEEP = f"sweep:wps={WPS},lag=0"
BREAK_EVEN = 4160 / WPS  # the share of time at which the sweep dirties what is sent


@pytest.fixture
def make_pair(tmp_path):
    made = []

    def make(*words, parameters, capability, **options):
        sizes = {"pages": PAGES, "vcpus": options.pop("vcpus", 1)}
        folder = tmp_path / str(len(made))
        folder.mkdir()
        source = make_guest(*words, **sizes, zero=0.0)
        pair = Pair(folder, source, make_guest(**sizes, incoming=True))
        made.append(pair)
        migration = pair.source.migration
        migration.set_capabilities([(capability, True)])
        migration.set_parameters(
            {"max-bandwidth": BANDWIDTH, "downtime-limit": 1, **options, **parameters}
        )
        pair.migrate()
        source.cont()
        return pair

    yield make
    for pair in made:
        pair.close()


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


def aggression(pair):
    info = pair.source.migration.info()
    assert info.status == "active", info
    return info.x_pysampler["aggression"]


def after_bulk(pair):
    """Wait until the control has ticked for a while."""
    wait_for(lambda: pair.source.status == "active")
    wait_for(lambda: pair.source.migration.info().ram.dirty_sync_count >= 2)
    time.sleep(0.4)


def fall(pair, seconds):
    """Return how fast what remains falls, as a share of what is sent meanwhile."""
    times, remaining, sent = [], [], []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        info = pair.source.migration.info()
        if info.status != "active":
            break
        times.append(time.monotonic())
        remaining.append(info.ram.remaining)
        sent.append(info.ram.normal_bytes)
        time.sleep(0.005)
    return -np.polyfit(times, remaining, 1)[0] / np.polyfit(times, sent, 1)[0]


@pytest.mark.parametrize(("level", "seconds"), [(0.25, 4), (0.5, 4), (1, 2)])
def test_what_remains_falls_by_the_level_of_aggression(make_pair, level, seconds):
    found = []
    # Twice, as a machine that is busy elsewhere may keep a vCPU or the sender waiting.
    for _ in range(2):
        pair = make_pair(SWEEP, capability="x-aggression", parameters={"x-aggression-level": level})
        after_bulk(pair)
        found.append(fall(pair, seconds))
        pair.source.migration.cancel()
        if found[-1] == pytest.approx(level, rel=0.1):
            return
    pytest.fail(f"a share of {level} was asked for: {found}")


def test_the_tests_of_progress_slow_the_guest_further_down_than_the_level_does(make_pair):
    # It has learned from writes to few pages, all of which are sent again and again. Then pages
    # that are clean become dirty faster than they are sent.
    factors = []
    for _ in range(2):  # as above: a vCPU that is kept waiting writes nothing, and all is sent
        pair = make_pair(
            (6 * 10**9, "uniform:wps=20k,ws=2M,lag=0"),
            (None, "sweep:wps=20k,lag=0"),
            capability="x-aggression",
            parameters={"x-aggression-level": 0},
        )
        after_bulk(pair)
        deadline = time.monotonic() + 20
        while pair.source.status == "active" and time.monotonic() < deadline:
            members = (pair.source.migration.info().x_pysampler or {}).get("aggression", {})
            if members.get("break-even"):
                factors.append(members["target"] / members["break-even"])
                if factors[-1] < 0.5:
                    return
            time.sleep(0.02)
        pair.source.migration.cancel()
    pytest.fail(f"the guest was slowed down by {min(factors, default=1)} at most")


@pytest.mark.parametrize("ratio", ["samples", "averages"])
def test_windows_in_which_the_vcpus_slept_do_not_raise_the_break_even(make_pair, ratio):
    # They run for 10 ms of 400 then: most windows have no run at all.
    parameters = {"x-aggression-level": 0.95, "x-aggression-ratio": ratio}
    pair = make_pair(SWEEP, capability="x-aggression", parameters=parameters)
    after_bulk(pair)
    at_first = wait_for(lambda: aggression(pair)["break-even"])
    time.sleep(2)
    assert aggression(pair)["break-even"] == pytest.approx(at_first, rel=0.05)
    pair.source.migration.cancel()


def test_a_level_changes_while_it_runs(make_pair):
    pair = make_pair(SWEEP, capability="x-aggression", parameters={"x-aggression-level": 0})
    after_bulk(pair)
    guest = pair.source.guest
    before = guest.writes()
    wait_for(lambda: guest.writes() != before)
    pair.source.migration.set_parameters({"x-aggression-level": 1})
    wait_for(lambda: aggression(pair)["target"] == 0)
    time.sleep(0.05)
    before = guest.writes()
    assert wait_for(lambda: pair.source.status in ENDED)
    assert guest.writes() == before
    assert pair.source.status == "completed"


def test_a_bulk_pass_of_less_than_a_second_counts_as_progress(make_pair):
    # Half a second sends all; what is written since is a quarter of that and more in each window.
    pair = make_pair(
        "sweep:wps=100k,lag=0,ws=16M",
        capability="x-aggression",
        parameters={"max-bandwidth": 128 << 20, "x-aggression-level": 0},
    )
    wait_for(lambda: pair.source.status == "active")
    wait_for(lambda: aggression(pair)["break-even"] or pair.source.status in ENDED)
    assert aggression(pair)["sums-pass"]


def test_a_dirty_limit_converges_outlives_the_migration_and_spares_who_writes_few_pages(
    make_pair,
):
    quiet = "1=uniform:wps=5k,ws=64K"  # 16 pages: its ring is never full
    pair = make_pair(
        "0=uniform:wps=50k",  # more than a ring in a period, with a core shared by others, too
        quiet,
        vcpus=2,
        capability="dirty-limit",
        parameters={
            "vcpu-dirty-limit": 1,
            "x-vcpu-dirty-limit-period": 200,
            "downtime-limit": 500,
            "max-bandwidth": 24 << 20,
        },
    )
    wait_for(lambda: pair.source.status == "active")
    guest, migration = pair.source.guest, pair.source.migration
    wait_for(lambda: guest.throttled_ns()[0])
    before, began = guest.writes()[1], time.monotonic()
    assert pair.source.wait_until_ended().status == "completed"
    seconds = time.monotonic() - began
    assert guest.throttled_ns()[1] == 0
    assert guest.writes()[1] - before == pytest.approx(5000 * seconds, rel=0.2, abs=500)
    assert [limit[:2] for limit in migration.dirty_limits()] == [(0, 1), (1, 1)]
