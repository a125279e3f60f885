"""The guest's own reading of its vCPUs' dirty log, against the truth and memory itself."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from pysampler.clock import MonotonicClock
from pysampler.core import LOG_SPARE, LogMode
from pysampler.errors import MissingFeatureError, SourceError
from pysampler.guest import BlockSpec
from pysampler.guest.measure import GuestMeasure
from pysampler.measuring import exact_observer
from pysampler.tracking.probe import probe
from pysampler.tracking.userfaultfd import offer_userfaultfd
from pysampler.vector.measurement import Mode

VGA = BlockSpec("vga", 67 * 4096)
WORKLOADS = [
    ("uniform:wps=max", "sweep:wps=max"),
    ("silent:of=uniform:wps=max", "free:of=hotcold:hot=10%,hits=90%,wps=max"),
    ("kv:wps=max", "zipf:theta=0.99,wps=max", "sweep:block=vga,wps=max"),
]


def unpacked(words, n):
    return np.unpackbits(words.view(np.uint8), count=n, bitorder="little").astype(bool)


def wait_for(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def take(guest, user):
    return [
        unpacked(words, block.length // 4096)
        for words, block in zip(user.take(), guest.blocks, strict=True)
    ]


def guest_of(make_guest, workloads):
    return make_guest(*workloads, vcpus=len(workloads), pages=4099, blocks=[VGA])


@pytest.mark.parametrize("workloads", WORKLOADS, ids=lambda w: str(len(w)) + w[-1][:5])
@pytest.mark.parametrize("limited", [False, True], ids=["alone", "with-rings"])
def test_takes_while_vcpus_run_flat_out_are_together_what_they_wrote(
    make_guest, let_it_write, workloads, limited
):
    guest = guest_of(make_guest, workloads)
    let_it_write(guest, 300)
    user, since = guest.shared_log.bitmap(), time.monotonic_ns()
    guest.cont()
    taken = take(guest, user)
    for turn in range(200):
        if limited and turn % 20 == 10:  # rings come and go meanwhile
            rings = guest.shared_log.rings()
        if limited and turn % 10 == 5:
            time.sleep(0.005)
        if limited and turn % 20 == 16:
            rings.sync()
        if limited and turn % 20 == 19:
            rings.close()
        taken = [a | b for a, b in zip(taken, take(guest, user), strict=True)]
    let_it_write(guest, 5000)
    taken = [a | b for a, b in zip(taken, take(guest, user), strict=True)]
    for block, pages in zip(guest.blocks, taken, strict=True):
        assert np.array_equal(pages, block.stamps >= since), block.idstr
    assert not any(pages.any() for pages in take(guest, user))
    user.close()


@pytest.mark.parametrize("workloads", WORKLOADS, ids=lambda w: str(len(w)) + w[-1][:5])
@pytest.mark.parametrize("limited", [False, True], ids=["alone", "with-rings"])
def test_pages_copied_after_they_were_taken_end_as_the_guests_are(make_guest, workloads, limited):
    guest = make_guest(*workloads, vcpus=len(workloads), pages=4099, blocks=[VGA], ring=1024)
    user = guest.shared_log.bitmap()
    rings = guest.shared_log.rings() if limited else None
    guest.cont()
    memories = [np.frombuffer(block.memory, np.uint8).reshape(-1, 4096) for block in guest.blocks]
    copies = [memory.copy() for memory in memories]

    def copy_dirty_pages():
        for copy, memory, dirty in zip(copies, memories, take(guest, user), strict=True):
            copy[dirty] = memory[dirty]

    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        copy_dirty_pages()
        if rings is not None:
            rings.sync()
    guest.stop()
    copy_dirty_pages()
    for copy, memory in zip(copies, memories, strict=True):
        assert np.array_equal(copy, memory)
    if rings is not None:
        assert sum(rings.pages()) > 4099  # pages entered rings again and again
        rings.close()
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


def uffd_or_skip(mode):
    for finding in probe():
        if f"{mode.value}" in finding.detail and not finding.works:
            pytest.skip(f"{finding.name}: {finding.detail}; {finding.cure}")


@pytest.mark.parametrize("limited", [False, True], ids=["migration", "dirty-limit"])
@pytest.mark.parametrize("mode", Mode)
def test_calc_dirty_rate_counts_while_the_guest_reads_its_log(make_guest, mode, limited):
    if mode is not Mode.PAGE_SAMPLING:
        uffd_or_skip(mode)
    guest = make_guest("sweep:ws=512K,wps=max", zero=0)
    user = guest.shared_log.rings() if limited else guest.shared_log.bitmap()
    guest.cont()
    *_, vector = GuestMeasure(guest)(
        mode=mode,
        calc_time_ms=200,
        calc_time_unit="millisecond",
        sample_pages=16384,
        clock=MonotonicClock(),
    )
    guest.stop()
    if mode is not Mode.PAGE_SAMPLING:
        assert vector.n_dirty_pages[-1] == 128
        assert vector.details["tracking"].startswith("userfaultfd")
        assert "reads its dirty log" in vector.details["tracking-reason"]
    else:
        # Half of the pages are written: 16 samples that are all alike come once in 30,000 runs.
        assert 0 < vector.n_dirty_pages[-1] < vector.n_sampled_pages == 16
    user.close()


@pytest.mark.parametrize("mode", [Mode.DIRTY_BITMAP, Mode.DIRTY_RING])
def test_another_process_tracks_by_userfaultfd_meanwhile_and_says_so(make_guest, mode):
    uffd_or_skip(mode)
    guest = make_guest("sweep:ws=512K,wps=max")
    user = guest.shared_log.bitmap()
    offered = offer_userfaultfd()
    guest.cont()
    command = [sys.executable, "-m", "pysampler", "sample", f"--pid={os.getpid()}"]
    result = subprocess.run(
        [*command, f"--mode={mode.value}", "--calc-time=200ms"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for fd in offered:
        os.close(fd)
    assert result.returncode == 0, result.stderr
    vector = json.loads(result.stdout)
    assert vector["n-dirty-pages"][-1] == 128
    assert vector["x-pysampler"]["tracking"].startswith("userfaultfd")
    assert "reads its dirty log, so the guest's writes were tracked by userfaultfd" in result.stderr
    user.close()


def test_the_log_is_free_again_when_its_last_user_has_gone(make_guest):
    guest = make_guest("idle")
    user, rings = guest.shared_log.bitmap(), guest.shared_log.rings()
    user.close()
    with pytest.raises(SourceError, match="its user is closed"):
        user.take()
    assert guest.log.file.mode is LogMode.BITMAP_AND_RING
    rings.close()
    rings.close()
    assert guest.log.file.mode is LogMode.OFF
    observer = exact_observer(GuestMeasure(guest).blocks(), Mode.DIRTY_BITMAP)
    observer.warm_up()
    observer.baseline()
    assert observer.details()["tracking"] == "vcpu-log"
    rings.sync()  # one that is closed leaves the log to others
    observer.compare()
    observer.close()


@pytest.mark.parametrize("size", [1024, 4096, 65536])
def test_a_ring_is_full_at_its_size_and_harvested_then(make_guest, size):
    guest = make_guest("sweep:wps=max", pages=3 * size, ring=size)
    rings = guest.shared_log.rings()
    rings.sleep_at_full(0, 60_000_000_000)
    guest.cont()
    wait_for(lambda: rings.pages()[0])
    time.sleep(0.05)
    assert size <= rings.pages()[0] == guest.writes()[0] < size + LOG_SPARE
    rings.close()
    guest.stop()


def test_a_page_counts_again_after_each_harvest(make_guest, let_it_write):
    guest = make_guest("sweep:wps=max")
    rings = guest.shared_log.rings()
    for turn in range(1, 4):
        let_it_write(guest, 1000)
        rings.sync()
        assert rings.pages() == [turn * 257]
    rings.close()


def test_a_ring_that_is_not_full_is_harvested_by_a_sync_only(make_guest, let_it_write):
    guest = make_guest("sweep:wps=max", pages=3000)
    rings = guest.shared_log.rings()
    let_it_write(guest, 6000)
    time.sleep(0.25)
    assert rings.pages() == [0]
    rings.sync()
    assert rings.pages() == [3000]
    rings.close()


def test_a_vcpu_that_sleeps_at_its_full_ring_can_be_stopped_and_goes_on_when_let_go(make_guest):
    guest = make_guest("sweep:wps=max", pages=9000)
    rings = guest.shared_log.rings()
    rings.sleep_at_full(0, 60_000_000_000)
    guest.cont()
    wait_for(lambda: rings.pages()[0])
    time.sleep(0.02)
    writes = guest.writes()
    began = time.monotonic()
    guest.stop()
    guest.cont()
    time.sleep(0.05)
    assert guest.writes() == writes  # it still sleeps
    rings.close()
    wait_for(lambda: guest.writes()[0] > writes[0] + 9000)
    assert time.monotonic() - began < 30
    guest.stop()


def test_a_sync_waits_for_vcpus_that_sleep(make_guest):
    guest = make_guest("sweep:wps=max", pages=9000)
    rings = guest.shared_log.rings()
    rings.sleep_at_full(0, 300_000_000)
    guest.cont()
    wait_for(lambda: rings.pages()[0])
    writes = guest.writes()[0]
    rings.sync()
    wait_for(lambda: guest.writes()[0] > writes)
    rings.close()
    guest.stop()


def test_nothing_is_lost_when_the_log_was_given_up_while_there_are_rings(make_guest, let_it_write):
    guest = make_guest("sweep:wps=max", blocks=[VGA])
    user, rings = guest.shared_log.bitmap(), guest.shared_log.rings()
    guest.log.file.set_mode(LogMode.GIVEN_UP)
    rings.sync()
    assert guest.log.file.mode is LogMode.BITMAP_AND_RING
    let_it_write(guest, 1000)
    assert all(pages.all() for pages in take(guest, user))
    let_it_write(guest, 1000)
    assert [pages.sum() for pages in take(guest, user)] == [257, 0]
    rings.close()
    user.close()


def test_a_guest_without_rings_has_the_bitmap_alone(make_guest, let_it_write):
    guest = make_guest("sweep:wps=max", ring=0)
    with pytest.raises(MissingFeatureError, match="--dirty-ring-size is 0"):
        guest.shared_log.rings()
    user = guest.shared_log.bitmap()
    let_it_write(guest, 1000)
    assert take(guest, user)[0].all()
    user.close()
    assert GuestMeasure(guest).modes == {Mode.PAGE_SAMPLING, Mode.DIRTY_BITMAP}
    guest.log.file.set_mode(LogMode.BITMAP_AND_RING)  # which somebody else may do
    let_it_write(guest, 1000)


def test_there_is_one_user_of_rings_at_a_time(make_guest):
    guest = make_guest("idle")
    rings = guest.shared_log.rings()
    with pytest.raises(SourceError, match="rings have a user already"):
        guest.shared_log.rings()
    rings.close()
