# SPDX-License-Identifier: MIT
"""The states of a migration and their ways; the window of 100 ms."""

import threading

import pytest

from pysampler.migration.status import RUNNING, MigrationStatus, StatusCell
from pysampler.migration.window import RateWindow, budget

S = MigrationStatus


def cell_at(*path):
    seen = []
    cell = StatusCell(seen.append)
    for status in path:
        assert cell.change(status)
    return cell, seen


@pytest.mark.parametrize(
    "path",
    [
        (S.SETUP, S.ACTIVE, S.DEVICE, S.COMPLETED),
        (S.SETUP, S.ACTIVE, S.PRE_SWITCHOVER, S.DEVICE, S.COMPLETED),
        (S.SETUP, S.CANCELLING, S.CANCELLED),
        (S.SETUP, S.ACTIVE, S.CANCELLING, S.CANCELLING, S.CANCELLED),
        (S.SETUP, S.FAILED),
        (S.SETUP, S.ACTIVE, S.COMPLETED),
    ],
)
def test_each_way_of_qemu_is_open_and_told_in_order(path):
    assert cell_at(*path)[1] == list(path)


@pytest.mark.parametrize("end", [S.COMPLETED, S.FAILED])
def test_a_migration_that_has_ended_stays_so(end):
    path = (S.SETUP, S.ACTIVE, S.DEVICE, end)
    cell, seen = cell_at(*path)
    assert not any(cell.change(status) for status in S)
    assert cell.value is end
    assert seen == list(path)
    assert end not in RUNNING


def test_a_cancelled_migration_neither_fails_nor_completes():
    cell, _ = cell_at(S.SETUP, S.ACTIVE, S.CANCELLING)
    assert not cell.change(S.FAILED)
    assert not cell.change(S.COMPLETED)
    assert cell.change(S.CANCELLED)


def test_of_two_threads_that_end_it_one_wins():
    for _ in range(200):
        cell, seen = cell_at(S.SETUP, S.ACTIVE)
        threads = [
            threading.Thread(target=cell.change, args=[status])
            for status in (S.FAILED, S.CANCELLING)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 3


@pytest.mark.parametrize(
    ("mib_per_s", "pages"), [(16, 416), (24, 640), (32, 832), (48, 1248), (64, 1664)]
)
def test_a_saturated_window_has_the_rates_that_qemu_shows(mib_per_s, pages):
    window_bytes = pages * 4104 + 18
    assert window_bytes > budget(mib_per_s << 20) >= window_bytes - 18 - 32 * 4104
    window = RateWindow(1000)
    assert window.end(1099, 0, 0) is None
    rates = window.end(1100, window_bytes, pages)
    assert rates.pages_per_second == pages * 10
    assert rates.mbps == window_bytes * 8 / 100 / 1000
    if mib_per_s == 32:
        assert rates.mbps == 273.16368  # as recorded
    # The next window begins where this one has ended.
    assert window.end(1199, 2 * window_bytes, 2 * pages) is None
    assert window.end(1225, 2 * window_bytes, 2 * pages).bandwidth == window_bytes / 125


def test_no_bandwidth_is_no_limit_and_a_small_one_is_some():
    assert budget(0) == 0
    assert budget(1) == 1
    assert budget((1 << 64) - 1) == ((1 << 64) - 1) // 10
