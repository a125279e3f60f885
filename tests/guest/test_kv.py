import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysampler.core import KvWrite
from pysampler.errors import UsageError
from pysampler.guest.kv import KvOptions, lay_out, parse_sizes

MIB = 1 << 20


@settings(deadline=None)
@given(
    st.integers(3, 40).map(lambda pages: MIB + pages * 300_000),
    st.tuples(st.integers(1, 20_000), st.integers(0, 20_000)),
    st.integers(0, 100),
)
def test_items_and_free_chunks_never_overlap_nor_cross_a_slab(ws, sizes, seed):
    value = sizes[0], sum(sizes)
    try:
        store = lay_out(KvOptions(value=value), ws, seed)
    except UsageError:
        # One slab per class in use is the least; with some 25 classes in reach it can fail.
        assert ws < 30 * MIB
        return
    used = np.unique(store.item_class)
    starts = np.concatenate([store.item_at, store.free_at[used]]).astype(np.int64)
    lengths = np.concatenate(
        [store.item_bytes, [store.item_bytes[store.item_class == c].max() for c in used]]
    ).astype(np.int64)
    order = np.argsort(starts)
    starts, ends = starts[order], (starts + lengths)[order]
    assert (ends[:-1] <= starts[1:]).all()
    assert ends[-1] <= ws // MIB * MIB
    assert (starts // MIB == (ends - 1) // MIB).all()
    assert (starts % 8 == 0).all()


def test_by_default_the_working_set_is_filled():
    store = lay_out(KvOptions(value=(1000, 1000)), 32 * MIB, 1)
    chunk = 1184  # the first of memcached's sizes with room for 1080 bytes
    assert store.n_keys == 32 * (MIB // chunk) - 1


def test_small_values_are_the_most_frequent():
    store = lay_out(KvOptions(keys=100_000, value=(100, 1000)), 256 * MIB, 1)
    counts = np.bincount(store.item_bytes)[180:1081]
    assert counts[0] == counts.max()
    assert counts[:100].sum() > counts[100:].sum()


@pytest.mark.parametrize(("mix", "write"), [("A", KvWrite.UPDATE), ("D", KvWrite.INSERT), ("F", KvWrite.MODIFY)])  # fmt: skip
def test_mixes_have_ycsbs_operations(mix, write):
    assert lay_out(KvOptions(mix=mix, keys=100), 4 * MIB, 1).write is write


@pytest.mark.parametrize(
    ("options", "ws"),
    [({"keys": 5000}, 4 * MIB), ({}, MIB - 4096)],
)
def test_keys_that_do_not_fit_are_refused(options, ws):
    with pytest.raises(UsageError, match="do not fit into a working set of"):
        lay_out(KvOptions(**options), ws, 1)


@pytest.mark.parametrize("options", [{"mix": "E"}, {"keys": 1}, {"keys": 10**9}])
def test_impossible_stores_are_refused(options):
    with pytest.raises(UsageError, match="workload kv"):
        KvOptions(**options)


@pytest.mark.parametrize("text", ["", "0", "5-4", "1-", "1-2-3", "257K", "x"])
def test_impossible_sizes_are_refused(text):
    with pytest.raises(UsageError, match="value: "):
        parse_sizes(text, "value")
