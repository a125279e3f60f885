import numpy as np
import pytest

from pysampler.core import Hash, Hasher, hash_mapped


@pytest.mark.parametrize("page_size", [4096, 65536])
@pytest.mark.parametrize("prefetch", [False, True])
def test_a_page_has_content_wherever_its_only_set_bit_is(page_size, prefetch):
    rng = np.random.default_rng(8)
    places = [0, 7, 63, 64, page_size - 1, *rng.integers(0, page_size, 200).tolist()]
    pages = np.zeros((len(places) + 1, page_size), dtype=np.uint8)
    pages[np.arange(len(places)), places] = 1 << rng.integers(0, 8, len(places), dtype=np.uint8)
    vfns = np.arange(len(pages), dtype=np.uint64)
    found = np.full(len(pages), 9, dtype=np.uint64)
    hash_mapped(Hasher(Hash.CONTENT, prefetch=prefetch), pages, page_size, vfns, found)
    assert found.tolist() == [1] * len(places) + [0]
