"""Threads that read where a limit lets only some of them begin, or none."""

import threading

import pytest

import pysampler
from pysampler.sampling.workers import Workers
from pysampler.vector.interrupted import MeasurementInterruptedError


@pytest.fixture
def at_most(monkeypatch):
    """Return a function that sets how many threads can be started from now on."""
    left = [0]
    start = threading.Thread.start

    def refusing(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    def set_left(n):
        left[0] = n
        monkeypatch.setattr(threading.Thread, "start", refusing)

    return set_left


@pytest.mark.parametrize("n", [1, 3, 7])
def test_the_threads_that_can_be_started_take_all_parts(at_most, n):
    at_most(n)
    assert Workers(8).run(lambda part: part * part, range(20)) == [i * i for i in range(20)]


def test_no_thread_at_all_is_said_with_the_cure(at_most):
    at_most(0)
    with pytest.raises(OSError, match=r"no thread can be started .* `ulimit -u` or `ulimit -v`"):
        Workers(8).run(abs, [1])


def test_the_periods_before_threads_ran_out_are_kept(at_most):
    at_most(4)  # to warm up, for the baseline and for two passes
    with pytest.raises(MeasurementInterruptedError, match="no thread") as caught:
        pysampler.sample(bytearray(16 << 20), calc_time="1s", sample_pages=16384)
    assert len(caught.value.measurement.periods) == 2
