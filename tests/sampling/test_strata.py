import numpy as np
import pytest

from pysampler.core import Hash, Hasher
from pysampler.memory.source import buffer_block
from pysampler.sampling.passes import Passes
from pysampler.sampling.plan import Profile, draw_plan

STRATA = Profile("strata", Hash.XXH64, stratified=True, sample_pages=16384, summary="")
DRAWN = Profile("drawn", Hash.XXH64, stratified=False, sample_pages=16384, summary="")


def counted(memories, writes, profile, threads=1):
    blocks = [buffer_block(memory) for memory in memories]
    plan = draw_plan(
        [memory.nbytes for memory in memories],
        profile=profile,
        sample_pages=profile.sample_pages,
        seed=5,
    )
    passes = Passes(blocks, plan, Hasher(profile.hash), threads)
    passes.baseline()
    for memory, pages in zip(memories, writes, strict=True):
        memory[pages, 17] ^= 1
    count = passes.compare()
    passes.close()
    dirty = [
        np.isin(np.sort(vfns).astype(int), pages)
        for vfns, pages in zip(plan.vfns, writes, strict=True)
    ]
    return count, np.concatenate(dirty)


@pytest.mark.parametrize("threads", [1, 3])
def test_changes_are_counted_in_address_order_across_blocks(threads):
    memories = [np.zeros((1025, 4096), np.uint8), np.zeros((513, 4096), np.uint8)]
    writes = [np.arange(200, 700), np.arange(0, 513, 2)]
    count, dirty = counted(memories, writes, STRATA, threads)
    assert (count.pages, count.changes) == (dirty.sum(), np.count_nonzero(np.diff(dirty)))


def test_draws_with_replacement_have_no_changes():
    count, _ = counted([np.zeros((1025, 4096), np.uint8)], [np.arange(500)], DRAWN)
    assert count.changes is None
