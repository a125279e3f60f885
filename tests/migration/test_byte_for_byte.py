# SPDX-License-Identifier: MIT
"""At the switchover both guests have the same RAM and the same state, whatever was written."""

import random
import time

import pytest
from pair import Pair, make_guest, same_ram

from pysampler.guest import BlockSpec, Content, snapshot
from pysampler.guest.run_state import RunState

WORKLOADS = (
    "uniform:wps={}",
    "hotcold:hot=10%,hits=90%,wps={}",
    "zipf:theta=0.99,wps={}",
    "sweep:wps={}",
    "kv:mix=A,wps={}",
    "kv:mix=D,wps={}",
    "burst:on=5ms,off=5ms,of=uniform:wps={}",
    "silent:of=uniform:wps={}",
    "free:of=uniform:wps={}",
    "idle",
)


# Bytes a second, ms: what gets dirty in the time fits.
LINKS = ((0, 100), (100 << 20, 500), (32 << 20, 2000))


def check_migrates(folder, words, rng, *, vcpus=1, parameters=(), capabilities=(), blocks=()):
    options = {"vcpus": vcpus, "pages": rng.randrange(2000, 6000), "blocks": blocks}
    content = rng.choice(list(Content))
    source = make_guest(*words, **options, zero=rng.random(), seed=3, content=content)
    pair = Pair(folder, source, make_guest(**options, incoming=True))
    try:
        pair.source.migration.set_capabilities([(name, True) for name in capabilities])
        pair.source.migration.set_parameters(dict(parameters))
        source.cont()
        time.sleep(rng.random() / 50)
        reply = pair.migrated()
        assert reply.status == "completed", reply
        there = pair.destination.guest
        assert source.state is RunState.POSTMIGRATE
        assert there.state is RunState.PAUSED
        assert same_ram(source, there)
        assert snapshot.save(source) == snapshot.save(there)
        # It goes on there, and here a throttle of the migration has ended.
        before = there.writes()
        assert there.cont()
        if not all("idle" in word for word in words):
            deadline = time.monotonic() + 10
            while there.writes() == before:
                assert time.monotonic() < deadline
                time.sleep(0.002)
    finally:
        pair.close()


@pytest.mark.parametrize("vcpus", [1, 4])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_each_workload(tmp_path, workload, vcpus):
    rng = random.Random(f"{workload}{vcpus}")
    check_migrates(tmp_path, [workload.format("20k")], rng, vcpus=vcpus)


@pytest.mark.parametrize("seed", range(16))
def test_random_migrations(tmp_path, seed):
    rng = random.Random(seed)
    vcpus = rng.choice((1, 2, 4))
    words = [
        f"{i}={rng.choice(WORKLOADS).format(rng.choice(('500', '2k', '8k')))}" for i in range(vcpus)
    ]
    blocks = [BlockSpec("vga", 300 * 4096)] * rng.randrange(2)
    check_migrates(
        tmp_path,
        words,
        rng,
        vcpus=vcpus,
        blocks=blocks,
        parameters=dict(zip(("max-bandwidth", "downtime-limit"), rng.choice(LINKS), strict=True)),
        capabilities=rng.choice(((), ("return-path",), ("auto-converge",), ("x-aggression",))),
    )


@pytest.mark.parametrize("vcpus", [1, 4])
def test_a_guest_that_only_a_throttle_makes_converge(tmp_path, vcpus):
    # Flat out it dirties all of its RAM in a moment; the bandwidth is below what it dirties.
    check_migrates(
        tmp_path,
        ["uniform:wps=30k,lag=0"],
        random.Random(5),
        vcpus=vcpus,
        capabilities=("auto-converge",),
        parameters={
            "max-bandwidth": 10 << 20,
            "downtime-limit": 500,
            "cpu-throttle-initial": 95,
            "throttle-trigger-threshold": 1,
        },
    )


def test_vcpus_flat_out_on_an_unlimited_link(tmp_path):
    check_migrates(
        tmp_path,
        ["uniform:wps=max"],
        random.Random(6),
        vcpus=2,
        parameters={"max-bandwidth": 0, "downtime-limit": 2000},
    )
