import itertools
import mmap
import zlib

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pysampler import core
from pysampler.core import Hash, Hasher, Simd
from pysampler.errors import MissingFeatureError

ORACLES = {
    Hash.XXH64: lambda page: xxhash.xxh64_intdigest(page, seed=1) & 0xFFFFFFFF,
    Hash.XXH3: xxhash.xxh3_64_intdigest,
    Hash.CRC32: zlib.crc32,
}
LEVELS = [simd for simd in Simd if simd <= core.simd_best()]
HASHERS = [
    Hasher(hash_, simd, prefetch)
    for hash_, simd, prefetch in itertools.product(ORACLES, LEVELS, [True, False])
]


def hashes_of(hasher, memory, page_size, vfns):
    vfns = np.asarray(vfns, dtype=np.uint64)
    hashes = np.full(len(vfns), 0xDEAD, dtype=np.uint64)
    assert core.hash_mapped(hasher, memory, page_size, vfns, hashes) == len(vfns)
    return hashes


def expected(hash_, memory, page_size):
    oracle, view = ORACLES[hash_], memoryview(memory)
    pages = range(0, len(view) // page_size * page_size, page_size)
    return np.fromiter((oracle(view[at : at + page_size]) for at in pages), dtype=np.uint64)


def random_bytes(n, seed):
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


def structured_pages(page_size):
    """Return pages that a kernel with a wrong carry, lane or length would get wrong."""
    lane = np.arange(page_size // 8, dtype=np.uint64)
    one_bit = np.zeros((8 * 64, page_size), dtype=np.uint8)
    bits = np.linspace(0, 8 * page_size - 1, len(one_bit)).astype(int)
    one_bit[np.arange(len(one_bit)), bits // 8] = 1 << bits % 8
    fills = [0x00, 0x01, 0x7F, 0x80, 0xFF]
    lanes = [
        lane,
        lane << np.uint64(32),
        ~lane,
        lane * np.uint64(0x9E3779B97F4A7C15),
        np.full_like(lane, 0xFFFFFFFF),
        np.full_like(lane, 0xFFFFFFFF00000000),
    ]
    return np.concatenate(
        [
            one_bit,
            ~one_bit,
            [np.full(page_size, fill, dtype=np.uint8) for fill in fills],
            [lanes_.view(np.uint8) for lanes_ in lanes],
        ]
    )


@pytest.mark.parametrize("hash_", [Hash.XXH64, Hash.XXH3])
def test_hashes_of_a_million_random_pages_are_those_of_the_xxhash_package(hash_):
    # Windows into the same random bytes: every offset makes all pages new, and most are unaligned.
    n_pages, page_size = 4096, 4096
    memory = memoryview(random_bytes((n_pages + 1) * page_size, seed=1))
    vfns = np.arange(n_pages)
    for offset in range(0, 4096, 17):
        window = memory[offset : offset + n_pages * page_size]
        right = expected(hash_, window, page_size)
        for simd in LEVELS:
            found = hashes_of(Hasher(hash_, simd), window, page_size, vfns)
            assert np.array_equal(right, found), (simd.name, offset)


@pytest.mark.parametrize("page_size", core.PAGE_SIZES)
@pytest.mark.parametrize("hasher", HASHERS, ids=str)
def test_every_kernel_agrees_with_the_oracle_at_every_page_size(hasher, page_size):
    random_pages = random_bytes(65 * page_size, seed=page_size).reshape(-1, page_size)
    memory = np.concatenate([random_pages, structured_pages(page_size)[::7]]).reshape(-1)
    right = expected(hasher.hash, memory, page_size)
    found = hashes_of(hasher, memory, page_size, np.arange(len(right)))
    assert np.array_equal(right, found)


@pytest.mark.parametrize("hasher", HASHERS, ids=str)
def test_structured_pages_hash_as_the_oracle_says(hasher):
    memory = structured_pages(4096).reshape(-1)
    right = expected(hasher.hash, memory, 4096)
    assert np.array_equal(right, hashes_of(hasher, memory, 4096, np.arange(len(right))))


@st.composite
def sparse_pages(draw):
    """A few bytes somewhere in a zero page."""
    page_size = draw(st.sampled_from(core.PAGE_SIZES))
    page = bytearray(page_size)
    for at, value in draw(
        st.lists(st.tuples(st.integers(0, page_size - 1), st.integers(0, 255)), max_size=9)
    ):
        page[at] = value
    return bytes(page)


@given(sparse_pages(), st.sampled_from(HASHERS))
def test_sparse_pages_hash_as_the_oracle_says(page, hasher):
    assert ORACLES[hasher.hash](page) == hashes_of(hasher, page, len(page), [0])[0]


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize("page_size", core.PAGE_SIZES)
def test_the_bare_read_folds_every_word_of_the_page(simd, page_size):
    page = random_bytes(page_size, seed=3)
    right = np.bitwise_xor.reduce(page.view(np.uint64))
    assert right == hashes_of(Hasher(Hash.READ, simd), page, page_size, [0])[0]


MEMORY = random_bytes(31 * 4096, seed=4)
VFN_LISTS = st.lists(st.integers(0, 30), max_size=65)


@given(VFN_LISTS, st.sampled_from(HASHERS))
def test_a_pass_hashes_each_page_wherever_and_however_often_it_is_listed(vfns, hasher):
    by_vfn = expected(hasher.hash, MEMORY, 4096)
    assert np.array_equal(by_vfn[vfns], hashes_of(hasher, MEMORY, 4096, vfns))


@given(VFN_LISTS, st.integers(0, 65), st.sampled_from(HASHERS))
def test_splitting_a_pass_changes_nothing(vfns, at, hasher):
    whole = hashes_of(hasher, MEMORY, 4096, vfns)
    parts = [hashes_of(hasher, MEMORY, 4096, part) for part in (vfns[:at], vfns[at:])]
    assert np.array_equal(whole, np.concatenate(parts))


@settings(max_examples=20)
@given(st.permutations(range(31)), st.sampled_from(HASHERS))
def test_permuting_the_vfns_permutes_the_hashes(order, hasher):
    in_order = hashes_of(hasher, MEMORY, 4096, range(31))
    assert np.array_equal(in_order[order], hashes_of(hasher, MEMORY, 4096, order))


@pytest.mark.parametrize("hasher", HASHERS, ids=str)
@pytest.mark.parametrize("page_size", core.PAGE_SIZES)
def test_nothing_outside_of_the_page_is_read(hasher, page_size, protect):
    with mmap.mmap(-1, 3 * page_size) as memory:
        memory.write(random_bytes(3 * page_size, seed=5))
        protect(memory, 0, page_size)
        protect(memory, 2 * page_size, page_size)
        # A read of a protected page would be the end of this process, prefetches are not.
        hashes = hashes_of(hasher, memory, page_size, [1, 1, 1])
    page = random_bytes(3 * page_size, seed=5)[page_size : 2 * page_size]
    assert [ORACLES[hasher.hash](page)] * 3 == hashes.tolist()


def test_a_simd_level_beyond_this_machine_is_refused():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pysampler.core.pages.simd_best", lambda: Simd.BASE)
        with pytest.raises(MissingFeatureError, match="no AVX2"):
            hashes_of(Hasher(Hash.XXH3, Simd.AVX2), MEMORY, 4096, [0])


@pytest.mark.parametrize("page_size", [0, 64, 4095, 4097, 12288, 131072])
def test_an_illegal_page_size_is_refused(page_size):
    with pytest.raises(ValueError, match="not a power of two from 4096 to 65536"):
        hashes_of(Hasher(Hash.XXH3), MEMORY, page_size, [])


def test_a_vfn_past_the_end_of_the_buffer_is_refused():
    with pytest.raises(IndexError):
        hashes_of(Hasher(Hash.XXH3), MEMORY, 4096, [31])


def test_hashes_are_never_written_to_read_only_memory():
    hashes = np.frombuffer(bytes(8), dtype=np.uint64)
    with pytest.raises(ValueError, match="read-only"):
        core.hash_mapped(Hasher(Hash.XXH3), MEMORY, 4096, np.zeros(1, dtype=np.uint64), hashes)
