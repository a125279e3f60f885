# SPDX-License-Identifier: MIT
"""A vCPU that reads: the pages of its workload, at its pace, and nothing becomes dirty."""

import numpy as np
import pytest

from pysampler.core import LogMode


@pytest.mark.parametrize("workload", ["uniform", "sweep", "zipf", "kv:mix=A,value=64-9000"])
def test_it_counts_reads_and_leaves_memory_log_and_truth_alone(make_guest, let_it_write, workload):
    guest = make_guest(f"read:of={workload.replace(':', ':wps=200k,', 1)}", pages=4096, zero=0.5)
    block = guest.blocks[0]
    before = bytes(block.memory)
    guest.log.file.set_mode(LogMode.BITMAP)
    guest.log.file.reset()
    let_it_write(guest, 20_000)
    assert guest.log.file.count(0, 0, 4096) == 0
    guest.log.file.set_mode(LogMode.OFF)
    assert bytes(block.memory) == before
    assert not np.any(block.stamps)


def test_a_migration_learns_of_no_page_that_was_read(make_guest):
    guest = make_guest("read:of=uniform:wps=100k", pages=4096, zero=0.0)
    user = guest.shared_log.bitmap()
    guest.cont()
    try:
        while guest.writes()[0] < 10_000:
            pass
        guest.stop()
        assert not any(words.any() for words in user.take())
    finally:
        user.close()
