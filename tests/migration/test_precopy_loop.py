# SPDX-License-Identifier: MIT
"""The loop of pre-copy in simulated time, against what QEMU's rules say of simple guests."""

import itertools

import numpy as np
import pytest

from pysampler.core.migrate import SendEnd
from pysampler.migration.convergence import NoControl
from pysampler.migration.precopy import Precopy, all_dirty
from pysampler.migration.settings import Settings

MS = 1_000_000
PAGE = 4104


class Clock:
    def __init__(self):
        self.ns = 5_000_000_000

    def now_ns(self):
        return self.ns

    def wait_until(self, deadline_ns):
        self.ns = max(self.ns, deadline_ns)


class Sender:
    """Sends whole pages, 32 to a flush, over a link of so many bytes per ms."""

    def __init__(self, clock, dirty, per_ms):
        self.clock, self.dirty, self.per_ms = clock, dirty, per_ms
        self.used = self.transferred = self.normal = self.duplicate = self.buffered = 0
        self.pending = int(np.count_nonzero(dirty))
        self.position = 0

    def put(self, data):
        self.buffered += len(data)

    def flush(self):
        self.used += self.buffered
        self.transferred += self.buffered
        self.clock.ns += int(self.buffered / self.per_ms * MS)
        self.buffered = 0

    def send(self, limit, until_ns):
        sent = 0
        while self.pending:
            if limit and self.used > limit:
                return SendEnd.LIMIT
            if sent % 64 == 0 and self.clock.ns >= until_ns:
                return SendEnd.TIME
            while not self.dirty[self.position]:
                self.position = (self.position + 1) % len(self.dirty)
            self.dirty[self.position] = False
            self.pending -= 1
            self.normal += 1
            sent += 1
            self.buffered += PAGE
            if self.buffered >= 32 * PAGE:
                self.flush()
        return SendEnd.CLEAN


class Log:
    """A guest that writes pages round and round, ``wps`` a second."""

    def __init__(self, clock, n_pages, wps):
        self.clock, self.n_pages, self.wps = clock, n_pages, wps
        self.begin = self.taken = clock.ns

    def take(self):
        now = self.clock.ns
        first = (self.taken - self.begin) * self.wps // 10**9
        n = (now - self.begin) * self.wps // 10**9 - first
        self.taken = now
        bits = np.zeros(self.n_pages, dtype=bool)
        bits[(first + np.arange(min(n, self.n_pages))) % self.n_pages] = True
        return [np.packbits(bits, bitorder="little").view(np.uint64)]


def migrate(n_pages, wps, *, bandwidth, limit_ms, per_ms=2_000_000, seconds=60, control=None):
    clock = Clock()
    settings = Settings(has_ring=False)
    settings.set_parameters({"max-bandwidth": bandwidth, "downtime-limit": limit_ms})
    words = all_dirty(n_pages)
    flags = np.ones(n_pages, dtype=bool)
    sender = Sender(clock, flags, per_ms)
    passes = []
    begin = clock.ns

    class Merging(Log):
        def take(self):
            taken = super().take()
            # What mark_dirty does to the words happens to the flags as well.
            words[:] = np.packbits(flags, bitorder="little").view(np.uint64)
            flags[:] |= np.unpackbits(taken[0].view(np.uint8), bitorder="little").astype(bool)
            return taken

    precopy = Precopy(
        sender,
        [words],
        Merging(clock, n_pages, wps),
        settings,
        control or NoControl(),
        clock,
        lambda count: passes.append(((clock.ns - begin) // MS, count)),
    )
    precopy.begin()
    done = precopy.run(lambda: clock.ns < begin + seconds * 10**9)
    return done, precopy, sender, passes, (clock.ns - begin) // MS


def test_an_idle_guest_takes_the_time_of_its_bytes():
    n_pages = 64 * 1024  # 256 MiB
    done, precopy, _, passes, ms = migrate(n_pages, 0, bandwidth=32 << 20, limit_ms=300)
    assert done
    # Full windows of 832 pages, until what is left is below 300 ms of them.
    windows = -(-(n_pages * 4096 - precopy.threshold) // (832 * 4096))
    assert ms == pytest.approx(windows * 100, abs=100)
    assert precopy.threshold == int((832 * PAGE + 18) / 100 * 300)
    assert [count for _, count in passes] == [1, 2]
    assert precopy.mbps == 273.16368
    assert precopy.pages_per_second == 8320


def test_nothing_completes_before_the_first_window_has_ended():
    done, precopy, _, passes, ms = migrate(1024, 100, bandwidth=1 << 30, limit_ms=2_000_000)
    assert done
    assert precopy.sync_count == 1 or ms >= 100
    assert passes[0] == (0, 1)


def test_a_guest_that_dirties_less_than_the_link_carries_converges_in_shrinking_passes():
    done, precopy, _, passes, _ = migrate(65536, 4000, bandwidth=64 << 20, limit_ms=50)
    assert done
    begins = [ms for ms, _ in passes]
    lengths = [b - a for a, b in itertools.pairwise(begins)]
    assert lengths == sorted(lengths, reverse=True)
    assert precopy.dirty_pages_rate == pytest.approx(4000, rel=0.02)


def test_a_guest_that_dirties_more_never_ends():
    done, precopy, sender, _, _ = migrate(65536, 20000, bandwidth=32 << 20, limit_ms=100)
    assert not done
    # Each lap finds the guest's whole lap dirty again, or all that it wrote meanwhile.
    assert sender.pending * 4096 > precopy.threshold
    assert precopy.expected_downtime_ms > 100


def test_pages_written_while_they_wait_do_not_count_as_dirtied():
    # All is pending for the whole bulk pass: what is written then is new only if sent before.
    done, precopy, *_ = migrate(65536, 65536, bandwidth=16 << 20, limit_ms=10, seconds=20)
    assert not done
    assert precopy.dirty_pages_rate < 4400  # the sender's own pace, not 65536


def test_changed_bandwidth_holds_from_the_next_window_on():
    clock = Clock()
    settings = Settings(has_ring=False)
    settings.set_parameters({"max-bandwidth": 16 << 20})
    flags = np.ones(1 << 16, dtype=bool)
    sender = Sender(clock, flags, 2_000_000)
    precopy = Precopy(
        sender, [all_dirty(1 << 16)], Log(clock, 1 << 16, 0), settings, NoControl(), clock,
        lambda _: None,
    )  # fmt: skip
    precopy.begin()
    end = clock.ns + 1000 * MS
    precopy.run(lambda: clock.ns < end)
    assert precopy.pages_per_second == 4160
    settings.set_parameters({"max-bandwidth": 64 << 20})
    end = clock.ns + 1000 * MS
    precopy.run(lambda: clock.ns < end)
    assert precopy.pages_per_second == 16640
