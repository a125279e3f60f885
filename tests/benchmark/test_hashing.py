import numpy as np
import pytest

from pysampler.benchmark.hashing import HASHES, HashCase, Result, cases, pass_cost
from pysampler.benchmark.memory import Region
from pysampler.units import GIB, MIB


def test_every_hash_is_timed_every_way():
    found = cases(2)
    assert len(set(found)) == len(found)
    ways = {
        name: {(c.cold, c.huge, c.prefetch, c.remote, c.threads) for c in found if c.hash == name}
        for name in HASHES
    }
    assert len(ways["xxh3"]) == 7
    assert all(of_one == ways["xxh3"] for of_one in ways.values())


def test_the_price_of_a_pass_follows_from_a_page():
    # The published guest: 16384 samples of 32 GiB; 12.5 ms are a tenth of the first period.
    cost = pass_cost(Result(HashCase("xxh3"), 250.0, 0.0, unstable=False), 32 * GIB, 512)
    assert cost.milliseconds == pytest.approx(16384 * 250e-6)
    assert cost.sample_pages == 50_000 // 32


def test_the_largest_sample_pages_ends_at_the_limit():
    cost = pass_cost(Result(HashCase("xxh3"), 10.0, 0.0, unstable=False), GIB, 512)
    assert cost.sample_pages == 16384


def test_cold_pages_come_again_only_after_all_others():
    region = Region(8 * MIB, huge=False)
    taken = np.concatenate([region.cold(512) for _ in range(4)])
    assert sorted(taken.tolist()) == list(range(2048))
    assert (region.cold(512) == taken[:512]).all()
    assert len(np.unique(region.pages[:, 0].astype(int))) > 1
