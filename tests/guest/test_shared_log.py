"""The guest's own reading of its vCPUs' dirty log, against the truth and memory itself."""

import time

import numpy as np
import pytest

from pysampler.core import LogMode
from pysampler.errors import SourceError
from pysampler.guest import BlockSpec
from pysampler.guest.measure import GuestMeasure
from pysampler.measuring import exact_observer
from pysampler.vector.measurement import Mode

VGA = BlockSpec("vga", 67 * 4096)
WORKLOADS = [
    ("uniform:wps=max", "sweep:wps=max"),
    ("silent:of=uniform:wps=max", "free:of=hotcold:hot=10%,hits=90%,wps=max"),
    ("kv:wps=max", "zipf:theta=0.99,wps=max", "sweep:block=vga,wps=max"),
]


def unpacked(words, n):
    return np.unpackbits(words.view(np.uint8), count=n, bitorder="little").astype(bool)


def take(guest, user):
    return [
        unpacked(words, block.length // 4096)
        for words, block in zip(user.take(), guest.blocks, strict=True)
    ]


def guest_of(make_guest, workloads):
    return make_guest(*workloads, vcpus=len(workloads), pages=4099, blocks=[VGA])


@pytest.mark.parametrize("workloads", WORKLOADS, ids=lambda w: str(len(w)) + w[-1][:5])
def test_takes_while_vcpus_run_flat_out_are_together_what_they_wrote(
    make_guest, let_it_write, workloads
):
    guest = guest_of(make_guest, workloads)
    let_it_write(guest, 300)
    user, since = guest.shared_log.bitmap(), time.monotonic_ns()
    guest.cont()
    taken = take(guest, user)
    for _ in range(200):
        taken = [a | b for a, b in zip(taken, take(guest, user), strict=True)]
    let_it_write(guest, 5000)
    taken = [a | b for a, b in zip(taken, take(guest, user), strict=True)]
    for block, pages in zip(guest.blocks, taken, strict=True):
        assert np.array_equal(pages, block.stamps >= since), block.idstr
    assert not any(pages.any() for pages in take(guest, user))
    user.close()


@pytest.mark.parametrize("workloads", WORKLOADS, ids=lambda w: str(len(w)) + w[-1][:5])
def test_pages_copied_after_they_were_taken_end_as_the_guests_are(make_guest, workloads):
    guest = guest_of(make_guest, workloads)
    user = guest.shared_log.bitmap()
    guest.cont()
    memories = [np.frombuffer(block.memory, np.uint8).reshape(-1, 4096) for block in guest.blocks]
    copies = [memory.copy() for memory in memories]

    def copy_dirty_pages():
        for copy, memory, dirty in zip(copies, memories, take(guest, user), strict=True):
            copy[dirty] = memory[dirty]

    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        copy_dirty_pages()
    guest.stop()
    copy_dirty_pages()
    for copy, memory in zip(copies, memories, strict=True):
        assert np.array_equal(copy, memory)
    user.close()


def test_a_user_begins_clean_and_ends_the_log(make_guest, let_it_write):
    guest = make_guest("uniform:wps=max")
    user = guest.shared_log.bitmap()
    let_it_write(guest, 500)
    user.close()
    user.close()
    assert guest.log.file.mode is LogMode.OFF
    user = guest.shared_log.bitmap()
    assert not take(guest, user)[0].any()
    user.close()


def test_the_guest_leaves_its_own_user_the_log(make_guest):
    guest = make_guest("idle")
    user = guest.shared_log.bitmap()
    guest.log.end_if_unread()
    assert guest.log.file.mode is LogMode.BITMAP
    user.close()


def test_if_the_log_was_off_meanwhile_any_page_may_have_been_written(make_guest, let_it_write):
    guest = make_guest("sweep:wps=max", blocks=[VGA])
    user = guest.shared_log.bitmap()
    guest.log.file.set_mode(LogMode.GIVEN_UP)
    assert all(pages.all() for pages in take(guest, user))
    assert not any(pages.any() for pages in take(guest, user))
    let_it_write(guest, 1000)
    assert [pages.sum() for pages in take(guest, user)] == [257, 0]
    user.close()


def test_a_measurement_that_reads_the_log_keeps_it(make_guest):
    guest = make_guest("idle")
    observer = exact_observer(GuestMeasure(guest).blocks(), Mode.DIRTY_BITMAP)
    with pytest.raises(SourceError, match="is being read by another measurement"):
        guest.shared_log.bitmap()
    observer.close()
    guest.shared_log.bitmap().close()


def test_there_is_one_bitmap_user_at_a_time(make_guest):
    guest = make_guest("idle")
    user = guest.shared_log.bitmap()
    with pytest.raises(SourceError, match="has a user already"):
        guest.shared_log.bitmap()
    user.close()
