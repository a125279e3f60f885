"""The hashes that are there to be compared, against independent implementations."""

import zlib

import numpy as np
import pytest
import xxhash

from pysampler import core
from pysampler.core import Hash, Hasher, Simd
from pysampler.errors import MissingFeatureError

RNG = np.random.default_rng(3)
PAGES = np.vstack([RNG.integers(0, 256, (31, 4096), np.uint8), np.zeros((2, 4096), np.uint8)])


def xxh3_128(page):
    value = xxhash.xxh3_128_intdigest(page)
    return value >> 64 ^ value & (1 << 64) - 1


REFERENCE = {
    Hash.XXH32: xxhash.xxh32_intdigest,
    Hash.XXH3_128: xxh3_128,
    Hash.CRC32_ISAL: zlib.crc32,
}
VFNS = np.array([5, 0, 32, 5, 31, 7], dtype=np.uint64)


@pytest.mark.parametrize("simd", [simd for simd in Simd if simd <= core.simd_best()])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("kind", REFERENCE)
def test_a_page_hash_is_that_of_the_reference(kind, prefetch, simd):
    hasher = Hasher(kind, simd, prefetch)
    try:
        hasher.struct()
    except MissingFeatureError as error:
        pytest.skip(str(error))
    hashes = np.empty(len(VFNS), dtype=np.uint64)
    assert core.hash_mapped(hasher, PAGES, 4096, VFNS, hashes) == len(VFNS)
    assert hashes.tolist() == [REFERENCE[kind](PAGES[int(vfn)].tobytes()) for vfn in VFNS]


@pytest.mark.parametrize("prefetch", [False, True])
def test_pages_that_differ_from_their_copies_are_counted(prefetch):
    pages = PAGES.copy()
    kept = pages[VFNS.astype(int)].copy()
    assert core.compare_mapped(pages, kept, 4096, VFNS, prefetch=prefetch) == 0
    pages[5, 4095] ^= 1  # drawn twice
    pages[0, 0] ^= 1
    pages[6, 0] ^= 1  # not drawn
    assert core.compare_mapped(pages, kept, 4096, VFNS, prefetch=prefetch) == 3


def test_a_missing_copy_is_refused():
    with pytest.raises(ValueError, match="not a copy of each page"):
        core.compare_mapped(PAGES, PAGES[:5], 4096, VFNS, prefetch=False)


def test_a_page_past_the_end_is_refused():
    with pytest.raises(IndexError, match="past the end"):
        core.compare_mapped(PAGES, PAGES, 4096, VFNS + np.uint64(1), prefetch=False)
