"""What vCPUs write is what the oracle says, write for write."""

from itertools import islice

import guest_oracle as oracle
import numpy as np
import pytest

from pysampler.guest import BlockSpec
from pysampler.guest.kv import KvOptions, lay_out
from pysampler.validation.theory import zipf as zipf_theory

WRITES = 3000
KV_PAGES = 2049  # eight slabs and a page


def marks(guest, vcpu=0):
    """Word offset -> number of the write whose mark it bears."""
    words = np.frombuffer(guest.blocks[0].memory, dtype=np.uint64)
    return {
        int(at) * 8: int(words[at]) & (1 << 48) - 1
        for at in words.nonzero()[0]
        if int(words[at]) >> 48 == vcpu
    }


def expected_marks(sequence, writes):
    """The same by the oracle: the last write to a word stays."""
    return {at: i for i, at in enumerate(islice(sequence, writes), 1) if at >= 0}


def kv_store(mix, value=(1000, 1000)):
    return lay_out(KvOptions(mix=mix, value=value), KV_PAGES * 4096, 7)


CASES = {
    "uniform": lambda r: oracle.uniform(r, 257),
    "uniform:ws=516K": lambda r: oracle.uniform(r, 129),
    "hotcold:hot=10%,hits=90%": lambda r: oracle.hotcold(r, 257, 26, 0.9),
    "hotcold:hot=100%,hits=0": lambda r: oracle.hotcold_all(r, 257),
    "zipf:theta=0.99": lambda r: oracle.zipf(r, 257, 0.99),
    "zipf:theta=1.5": lambda r: oracle.zipf(r, 257, 1.5),
    "sweep": lambda r: oracle.sweep(r, 257),
}


@pytest.mark.parametrize("workload", CASES)
def test_a_vcpu_writes_the_words_that_the_oracle_says(make_guest, let_it_write, workload):
    guest = make_guest(f"{workload}{',' if ':' in workload else ':'}wps=200k")
    let_it_write(guest, WRITES)
    expected = expected_marks(CASES[workload](oracle.Random(7)), guest.writes()[0])
    assert marks(guest) == expected


@pytest.mark.parametrize("mix", "ABCDF")
def test_a_store_writes_the_words_that_the_oracle_says(make_guest, let_it_write, mix):
    guest = make_guest(f"kv:mix={mix},value=64-9000,wps=200k", pages=KV_PAGES)
    let_it_write(guest, WRITES)
    store = kv_store(mix, value=(64, 9000))
    sequence = oracle.kv(oracle.Random(7), store, 0.99, mix)
    assert marks(guest) == expected_marks(sequence, guest.writes()[0])


def test_stopping_leaves_no_gap_in_the_sequence(make_guest, let_it_write):
    guest = make_guest("uniform:wps=200k")
    for _ in range(5):
        let_it_write(guest, WRITES // 7)
    expected = expected_marks(oracle.uniform(oracle.Random(7), 257), guest.writes()[0])
    assert marks(guest) == expected


def test_each_vcpu_and_each_seed_has_a_sequence_of_its_own(make_guest, let_it_write):
    written = set()
    for seed in (7, 8):
        guest = make_guest("0=uniform:wps=100k", "1=uniform:wps=100k", vcpus=2, seed=seed)
        let_it_write(guest, 20)
        written.update(frozenset(marks(guest, vcpu)) for vcpu in (0, 1))
    assert len(written) == 4


def test_a_workload_may_have_another_block(make_guest, let_it_write):
    guest = make_guest("uniform:block=vga", blocks=[BlockSpec("vga", 31 * 4096)])
    let_it_write(guest, 31)
    assert not np.frombuffer(guest.blocks[0].memory, dtype=np.uint8).any()
    assert np.frombuffer(guest.blocks[1].memory, dtype=np.uint8).any()


def test_ranks_follow_zipfs_law():
    # Chi-square with 99 degrees of freedom exceeds 180 by chance once in a million.
    theta, n, draws = 0.99, 100, 40_000
    random = oracle.Random(1)
    counts = np.bincount([random.rank(theta, n)[0] for _ in range(draws)], minlength=n + 1)[1:]
    chances = zipf_theory(n, theta)
    expected = np.sort(np.repeat(chances.chances, chances.sizes.astype(int)))[::-1] * draws
    assert ((counts - expected) ** 2 / expected).sum() < 180


def test_silent_writes_are_counted_and_change_nothing(make_guest, let_it_write):
    guest = make_guest("silent:wps=200k", zero=0.5)
    before = bytes(guest.blocks[0].memory)
    let_it_write(guest, 600)
    assert bytes(guest.blocks[0].memory) == before
    assert guest.count_dirty_since(0)["pc.ram"] > 200


def test_freed_pages_are_zero(make_guest, let_it_write):
    guest = make_guest("free:of=sweep:wps=200k", zero=0)
    let_it_write(guest, 100)
    pages = np.frombuffer(guest.blocks[0].memory, dtype=np.uint8).reshape(-1, 4096)
    freed = min(guest.writes()[0], 257)
    assert [bool(page.any()) for page in pages] == [False] * freed + [True] * (257 - freed)


def test_an_idle_vcpu_and_the_pause_of_a_burst_write_nothing(make_guest):
    guest = make_guest("0=burst:on=1ms,off=24h,wps=1k", "1=idle", "2=uniform", vcpus=3)
    guest.cont()
    while guest.writes()[2] < 5000:
        pass
    guest.stop()
    # One write a millisecond, and one millisecond; no matter how late the threads were.
    assert guest.writes()[0] <= 1
    assert guest.writes()[1] == 0
