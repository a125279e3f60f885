"""Soft-dirty bits, by files that stand for those of a kernel that has them."""

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writers import PAGE, anonymous

from pysampler import core
from pysampler.errors import FaultError
from pysampler.memory.source import buffer_block
from pysampler.tracking.probe import probe
from pysampler.tracking.soft_dirty import SoftDirty, cycle_works

SOFT_DIRTY = 1 << 55
OTHER_BITS = 0x8100000000ABCDEF  # present, exclusive, a frame number


class Kernel:
    """A folder that stands for /proc/PID."""

    def __init__(self, folder, memory):
        self.path = str(folder)
        self._first = core.address_of(memory) // PAGE
        self._pagemap = folder / "pagemap"
        self.clear_refs = folder / "clear_refs"
        self.clear_refs.touch()
        self.write_entries(dict.fromkeys(range(len(memory) // PAGE), OTHER_BITS))

    def write_entries(self, entries):
        with self._pagemap.open("r+b" if self._pagemap.exists() else "w+b") as pagemap:
            for page, entry in entries.items():
                pagemap.seek((self._first + page) * 8)
                pagemap.write(struct.pack("=Q", entry))

    def end(self):
        self._pagemap.write_bytes(b"")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.integers(0, 2600)), min_size=1, max_size=4))
def test_dirty_pages_are_the_union_of_soft_dirty_bits(tmp_path_factory, periods):
    memory = anonymous(2601)
    kernel = Kernel(tmp_path_factory.mktemp("proc"), memory)
    observer = SoftDirty([buffer_block(memory)], proc=kernel.path)
    observer.warm_up()
    observer.baseline()
    assert kernel.clear_refs.read_bytes() == b"4"
    union = set()
    for pages in periods:
        kernel.write_entries(dict.fromkeys(pages, OTHER_BITS | SOFT_DIRTY))
        union |= pages
        assert observer.compare().pages == len(union)
    assert set(np.flatnonzero(observer.memory.dirty_pages("buffer"))) == union
    assert observer.details()["tracking"] == "soft-dirty"
    observer.close()
    observer.close()


def test_a_process_that_ends_is_missed(tmp_path):
    memory = anonymous(513)
    kernel = Kernel(tmp_path, memory)
    observer = SoftDirty([buffer_block(memory)], proc=kernel.path)
    observer.baseline()
    kernel.end()
    with pytest.raises(FaultError, match="soft-dirty bits cannot be had any more: No such process"):
        observer.compare()
    observer.close()


def test_a_kernel_that_clears_bits_which_it_does_not_have_is_found_out(tmp_path):
    # clear_refs takes the request, but a written page never shows the bit.
    (tmp_path / "clear_refs").touch()
    with (tmp_path / "pagemap").open("wb") as pagemap:
        pagemap.truncate((1 << 47) // PAGE * 8)
    assert not cycle_works(str(tmp_path))
    assert (tmp_path / "clear_refs").read_bytes() == b"4"


def test_the_probe_agrees_with_the_kernels_configuration():
    (finding,) = (finding for finding in probe() if finding.name == "soft-dirty bits")
    try:
        with gzip.open("/proc/config.gz", "rt") as config:
            configured = "CONFIG_MEM_SOFT_DIRTY=y\n" in config
    except FileNotFoundError:
        pytest.skip("this kernel does not show its configuration")
    assert finding.works == configured
