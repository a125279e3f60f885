import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pysampler.errors import UsageError
from pysampler.sampling.plan import PROFILES, draw_plan
from pysampler.units import GIB, MIB

QEMU, FAST = PROFILES["qemu"], PROFILES["fast"]


def test_the_published_guest_has_16392_samples():
    plan = draw_plan([32 * GIB, 16 * MIB], profile=QEMU, sample_pages=512, seed=0)
    assert (plan.n_total_pages, plan.n_sampled_pages) == (8392704, 16392)
    assert [len(vfns) for vfns in plan.vfns] == [16384, 8]


lengths = st.lists(st.integers(32, 1 << 20).map(lambda pages: pages * 4096), min_size=1, max_size=4)


@given(lengths, st.integers(128, 16384), st.integers(0, 2**64 - 1))
def test_each_block_gets_the_floor_of_its_share_and_never_its_last_page(sizes, sample_pages, seed):
    plan = draw_plan(sizes, profile=QEMU, sample_pages=sample_pages, seed=seed)
    for size, vfns in zip(sizes, plan.vfns, strict=True):
        assert len(vfns) == size * sample_pages // GIB
        assert (vfns < size // 4096 - 1).all()


@given(lengths, st.integers(128, 16384), st.integers(0, 2**64 - 1))
def test_a_stratified_plan_draws_one_page_of_each_stratum(sizes, sample_pages, seed):
    plan = draw_plan(sizes, profile=FAST, sample_pages=sample_pages, seed=seed)
    for size, vfns in zip(sizes, plan.vfns, strict=True):
        n_pages, n = size // 4096, size * sample_pages // GIB
        edges = np.arange(n + 1, dtype=object) * n_pages // max(n, 1)
        drawn = np.sort(vfns)
        assert len(drawn) == n
        assert (drawn >= edges[:-1].astype(np.uint64)).all()
        assert (drawn < edges[1:].astype(np.uint64)).all()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_seed_repeats_a_plan_and_another_does_not(profile):
    one, same, other = (
        draw_plan([GIB], profile=profile, sample_pages=513, seed=seed).vfns[0] for seed in (7, 7, 8)
    )
    assert (one == same).all()
    assert (one != other).any()


def test_blocks_of_one_plan_are_drawn_independently():
    one, other = draw_plan([GIB, GIB], profile=QEMU, sample_pages=512, seed=1).vfns
    assert (one != other).any()


# Both chi-squares have a false-alarm rate of 1e-6 for a new seed; with these seeds they repeat.
P_ALARM = 1e-6


def test_qemu_draws_are_uniform_over_all_pages_but_the_last():
    n_pages, counts = 513, np.zeros(513)
    for seed in range(400):
        plan = draw_plan([n_pages * 4096], profile=QEMU, sample_pages=16384, seed=seed)
        counts += np.bincount(plan.vfns[0].astype(int), minlength=n_pages)
    assert counts[-1] == 0
    assert stats.chisquare(counts[:-1]).pvalue > P_ALARM


def test_stratified_draws_reach_every_page_evenly_and_at_any_time_of_the_pass():
    n_pages, counts, firsts = 512, np.zeros(512), np.zeros(32)
    for seed in range(2000):
        plan = draw_plan([n_pages * 4096], profile=FAST, sample_pages=16384, seed=seed)
        counts += np.bincount(plan.vfns[0].astype(int), minlength=n_pages)
        firsts[int(plan.vfns[0][0]) // 16] += 1
    assert stats.chisquare(counts).pvalue > P_ALARM
    assert stats.chisquare(firsts).pvalue > P_ALARM


def test_more_samples_than_memory_can_hold_are_refused():
    with pytest.raises(UsageError, match="are more than 33554432: use fewer sample-pages"):
        draw_plan([1 << 50], profile=QEMU, sample_pages=512, seed=0)


@pytest.mark.parametrize("sample_pages", [-1, 0, 127, 16385, 10**9])
def test_sample_pages_out_of_range_are_refused(sample_pages):
    with pytest.raises(UsageError, match=r"between 128 and 16384 \(got"):
        draw_plan([GIB], profile=QEMU, sample_pages=sample_pages, seed=0)
