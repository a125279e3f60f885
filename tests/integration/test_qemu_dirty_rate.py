"""QEMU's dirty rate and ours of the same pages at the same time."""

import math

import numpy as np
import pytest
from real_qemu import PAGE_SIZE, Qemu, write

from pysampler import Sampler, Status, find_blocks
from pysampler.core import Hash
from pysampler.sampling.page_sampling import PageSampling
from pysampler.sampling.plan import PROFILES
from pysampler.units import MIB

pytestmark = pytest.mark.integration

LENGTH = 512 * MIB
SAMPLE_PAGES = 16384
DIRTY = 0.3  # share of the pages written
Z = 4.42  # two-sided 1e-5; three comparisons in each of two tests: 6e-5 false alarms a run

CONFIGURATIONS = {
    "memfd": [
        *("-machine", "pc,memory-backend=ram0", "-m", "512M"),
        *("-object", "memory-backend-memfd,id=ram0,size=512M,share=on"),
    ],
    "private RAM": ["-machine", "pc", "-m", "512M"],
}


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_dirty_rates_agree_within_the_sampling_interval(tmp_path, configuration):
    rng = np.random.default_rng(16384)
    n_pages = LENGTH // PAGE_SIZE
    offsets = (rng.permutation(n_pages)[: round(DIRTY * n_pages)] * PAGE_SIZE).tolist()
    with Qemu(tmp_path, *CONFIGURATIONS[configuration]) as qemu:
        (block,) = find_blocks(qemu.pid)
        write(block, range(0, LENGTH, PAGE_SIZE), b"baseline")  # then later writes are quick
        profile = PROFILES["qemu-7" if qemu.page_hash() is Hash.CRC32 else "qemu"]
        n_traced = sum(length * SAMPLE_PAGES >> 30 for length in qemu.ramblocks().values())
        observer = PageSampling([block], profile=profile, sample_pages=SAMPLE_PAGES, seed=20)
        with Sampler(observer, calc_time_ms=2000) as sampler:
            for ours in sampler:
                if len(ours.periods) > 1:
                    continue
                # Ours has its baseline; QEMU takes its own, and then both have the writes to find.
                assert ours.n_dirty_pages == (0,)
                qemu.command("calc-dirty-rate", calc_time=2, sample_pages=SAMPLE_PAGES)
                qemu.wait_for_traced(n_traced)
                write(block, offsets, b"dirtied!")
                assert len(qemu.traced()) == n_traced, "QEMU's second pass came too early"
        theirs = qemu.wait_measured()
        traced = qemu.traced()

    assert ours.status is Status.MEASURED
    our_share = ours.n_dirty_pages[-1] / ours.n_sampled_pages
    pairs = list(zip(traced[:n_traced], traced[n_traced:], strict=True))
    their_share = sum(a.hash != b.hash for a, b in pairs if a.idstr == block.idstr) / (
        ours.n_sampled_pages
    )
    deviation = math.sqrt(DIRTY * (1 - DIRTY) / ours.n_sampled_pages)
    assert our_share == pytest.approx(DIRTY, abs=Z * deviation)
    assert their_share == pytest.approx(DIRTY, abs=Z * deviation)
    # QEMU counts in firmware, and divides by the time that passed: both make it smaller.
    slack = Z * math.sqrt(2) * deviation * LENGTH / MIB
    # What is written in the middle of ours may make its last pass late.
    in_2_s = ours.dirty_rate * ours.duration_ms / 2000
    assert theirs["dirty-rate"] == pytest.approx(in_2_s, abs=slack + 2, rel=0.01)
