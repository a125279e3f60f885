"""Throttled vCPUs of a guest that runs.

Other programs of the machine take the CPU from a vCPU. Then it writes less and sleeps less than its
throttle says, however right the throttle is. So a test takes up to ten windows of time, and passes
at the first one in which each vCPU's writes and its sleep are both as told.

That finds each throttle that is wrong all the time, as a wrong share or a wrong pace is: no window
comes near then. It does not find one that is right in some windows only. The arithmetic of the
throttle has no such windows: test_pace.py holds it exactly, under an invented clock.
"""

import time

import pytest

from pysampler.errors import UsageError

WINDOWS = 10


def counted(guest, seconds):
    """Return each vCPU's writes a second, and the share of time that it slept as it was told."""
    begin, writes, slept = time.monotonic_ns(), guest.writes(), guest.throttled_ns()
    time.sleep(seconds)
    ns = time.monotonic_ns() - begin
    return (
        [(now - then) * 1e9 / ns for then, now in zip(writes, guest.writes(), strict=True)],
        [(now - then) / ns for then, now in zip(slept, guest.throttled_ns(), strict=True)],
    )


def assert_counted(guest, writes, slept, seconds=0.8):
    """In one of the windows each vCPU has these writes a second, and sleeps for this share."""
    found = []
    for _ in range(WINDOWS):
        found.append(counted(guest, seconds))
        if found[-1][0] == pytest.approx(writes, rel=0.1) and (
            found[-1][1] == pytest.approx(slept, abs=0.05)
        ):
            return
    pytest.fail(f"writes {writes}, slept {slept}: {found}")


@pytest.mark.parametrize(
    ("lag", "percentage", "left"),
    [("0", 50, 0.5), ("0ms", 80, 0.2), ("50ms", 80, 1.0), ("50ms", 90, 0.6), ("1s", 95, 1.0)],
)
def test_a_throttle_takes_writes_that_are_not_made_up_for(make_guest, lag, percentage, left):
    guest = make_guest(f"uniform:wps=50k,lag={lag}")
    guest.cont()
    guest.throttle(percentage)
    assert_counted(guest, [50_000 * left], [percentage / 100])


def test_a_vcpu_without_a_pace_has_the_rest_of_the_time(make_guest):
    guest = make_guest("uniform:wps=max")
    guest.cont()
    guest.throttle(75)
    found = []
    while not any(share == pytest.approx(0.75, abs=0.05) for share in found):
        assert len(found) < WINDOWS, found
        found += counted(guest, 0.8)[1]


def test_one_vcpu_is_throttled_alone(make_guest):
    guest = make_guest("uniform:wps=20k,lag=0", vcpus=2)
    guest.cont()
    guest.throttle(90, vcpu=1)
    assert_counted(guest, [20_000, 2000], [0, 0.9])
    assert guest.throttled_ns()[0] == 0


def test_the_rest_of_a_burst_is_no_sleep(make_guest):
    guest = make_guest("burst:on=100ms,off=100ms,of=uniform:wps=40k,lag=0")
    guest.cont()
    guest.throttle(50)
    assert_counted(guest, [10_000], [0.25], seconds=1)


def test_a_guest_stops_and_goes_on_at_once_whatever_it_sleeps(make_guest):
    guest = make_guest("uniform:wps=20k")
    guest.cont()
    guest.throttle(99.9)  # ten seconds at a time
    time.sleep(0.1)
    begin = time.monotonic()
    guest.stop()
    guest.cont()  # and has its throttle still
    writes = guest.writes()[0]
    time.sleep(0.1)
    assert guest.writes()[0] - writes < 1000
    guest.throttle(0)
    while guest.writes()[0] - writes < 2000:
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("percentage", [100, 100 - 1e-12, 99.99])
def test_a_vcpu_sleeps_until_it_is_told_otherwise(make_guest, percentage):
    guest = make_guest("uniform:wps=20k", "uniform:wps=max", vcpus=2)
    guest.cont()
    begin = time.monotonic_ns()
    guest.throttle(percentage)
    time.sleep(0.1)
    writes = guest.writes()
    slept = guest.throttled_ns()  # which it says while it sleeps
    while any(now - then < 50e6 for then, now in zip(slept, guest.throttled_ns(), strict=True)):
        assert time.monotonic_ns() - begin < 5e9
    assert max(guest.throttled_ns()) <= time.monotonic_ns() - begin
    guest.stop()
    guest.cont()
    time.sleep(0.05)
    if percentage == 100:  # the others begin with a turn of running, of which some may be left
        assert guest.writes() == writes
    guest.throttle(0)
    deadline = time.monotonic() + 5
    while any(now - then < 2000 for then, now in zip(writes, guest.writes(), strict=True)):
        assert time.monotonic() < deadline


def test_a_vcpu_that_begins_asleep_writes_nothing(make_guest):
    guest = make_guest("uniform:wps=max", vcpus=2)
    guest.throttle(100, vcpu=1)
    guest.cont()
    while guest.writes()[0] < 10_000:
        time.sleep(0.001)
    assert guest.writes()[1] == 0
    guest.throttle(50)
    deadline = time.monotonic() + 5
    while not guest.writes()[1]:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("percentage", [-1, 100.01, 101, float("nan"), float("inf")])
def test_a_percentage_out_of_range_changes_nothing(make_guest, percentage):
    guest = make_guest("idle")
    with pytest.raises(UsageError, match="is not from 0 to 100 %"):
        guest.throttle(percentage)


@pytest.mark.parametrize("vcpu", [-1, 1, 255])
def test_a_vcpu_that_is_not_there_is_named(make_guest, vcpu):
    with pytest.raises(UsageError, match=f"there is no vCPU {vcpu}; the last is 0"):
        make_guest("idle").throttle(50, vcpu=vcpu)
