"""Throttled vCPUs of a guest that runs.

Counts are compared with loose bounds: the machine may be busy. The arithmetic is held exactly in
test_pace.py.
"""

import time

import pytest

from pysampler.errors import UsageError


def counted(guest, seconds=1.0):
    """Return each vCPU's writes a second, and the share of time that it slept as it was told."""
    time.sleep(0.05)
    begin, writes, slept = time.monotonic_ns(), guest.writes(), guest.throttled_ns()
    time.sleep(seconds)
    ns = time.monotonic_ns() - begin
    return (
        [(now - then) * 1e9 / ns for then, now in zip(writes, guest.writes(), strict=True)],
        [(now - then) / ns for then, now in zip(slept, guest.throttled_ns(), strict=True)],
    )


@pytest.mark.parametrize(
    ("lag", "percentage", "left"),
    [("0", 50, 0.5), ("0ms", 80, 0.2), ("50ms", 80, 1.0), ("50ms", 90, 0.6), ("1s", 95, 1.0)],
)
def test_a_throttle_takes_writes_that_are_not_made_up_for(make_guest, lag, percentage, left):
    guest = make_guest(f"uniform:wps=50k,lag={lag}")
    guest.cont()
    guest.throttle(percentage)
    (writes,), (slept,) = counted(guest)
    assert writes == pytest.approx(50_000 * left, rel=0.15)
    assert slept == pytest.approx(percentage / 100, abs=0.1)


def test_a_vcpu_without_a_pace_has_the_rest_of_the_time(make_guest):
    guest = make_guest("uniform:wps=max")
    guest.cont()
    guest.throttle(75)
    _, (slept,) = counted(guest)
    # Where the CPU is taken from it while it runs, that is time in which it does not sleep.
    assert 0.3 < slept < 0.8


def test_one_vcpu_is_throttled_alone(make_guest):
    guest = make_guest("uniform:wps=20k,lag=0", vcpus=2)
    guest.cont()
    guest.throttle(90, vcpu=1)
    writes, slept = counted(guest)
    assert writes == pytest.approx([20_000, 2000], rel=0.2)
    assert slept[0] == 0


def test_the_rest_of_a_burst_is_no_sleep(make_guest):
    guest = make_guest("burst:on=100ms,off=100ms,of=uniform:wps=40k,lag=0")
    guest.cont()
    guest.throttle(50)
    (writes,), (slept,) = counted(guest, 2)
    assert writes == pytest.approx(10_000, rel=0.2)
    assert slept == pytest.approx(0.25, abs=0.1)


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


@pytest.mark.parametrize("percentage", [-1, 99.91, 100, float("nan"), float("inf")])
def test_a_percentage_out_of_range_changes_nothing(make_guest, percentage):
    guest = make_guest("idle")
    with pytest.raises(UsageError, match=r"is not from 0 to 99\.9 %"):
        guest.throttle(percentage)


@pytest.mark.parametrize("vcpu", [-1, 1, 255])
def test_a_vcpu_that_is_not_there_is_named(make_guest, vcpu):
    with pytest.raises(UsageError, match=f"there is no vCPU {vcpu}; the last is 0"):
        make_guest("idle").throttle(50, vcpu=vcpu)
