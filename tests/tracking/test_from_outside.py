"""Tracking of another process that offers its userfaultfd."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from tracked_guest import Guest
from writers import tracking

from pysampler import Measurement, Mode
from pysampler.cli import main
from pysampler.errors import FaultError, MissingFeatureError, SourceError
from pysampler.measuring import exact_observer
from pysampler.memory.source import find_blocks
from pysampler.sampling.sampler import Sampler
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
from pysampler.vector.interrupted import MeasurementInterruptedError

pytestmark = pytest.mark.usefixtures("needs_dirty_bitmap", "needs_dirty_ring")


def dirty(observer):
    return set(np.flatnonzero(observer.memory.dirty_pages("pc.ram")).tolist())


def test_dirty_bitmap_from_outside_is_exact(guest):
    guest.write(0, [3])
    with tracking(DirtyBitmap(find_blocks(guest.pid), pid=guest.pid)) as observer:
        guest.write(0, [1, 2, 1024])
        assert observer.compare().pages == 3
        guest.write(1, [2, 500])
        assert observer.compare().pages == 4
        assert dirty(observer) == {1, 2, 500, 1024}
        assert guest.is_registered()
    assert not guest.is_registered()
    guest.write(0, range(1025))


def test_dirty_ring_from_outside_is_exact(guest):
    vcpus = vcpu_threads(guest.pid)
    ring = DirtyRing(find_blocks(guest.pid), vcpus, pid=guest.pid, capacity=16)
    with tracking(ring) as observer:
        guest.begin(0, range(300))
        guest.begin(1, range(300, 1000))
        guest.wait()
        guest.wait()
        assert observer.compare().pages == 1000
        assert observer.vcpu_pages() == ((0, 300), (1, 700))
        assert dirty(observer) == set(range(1000))
    assert not guest.is_registered()
    guest.write(0, range(1025))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make pid namespaces")
@pytest.mark.parametrize(
    "unshare",
    [["-pf"], ["-pf", "--mount-proc"], ["-pf", "--mount-proc", "unshare", "-pf", "--mount-proc"]],
    ids=["proc of ours", "proc of its own", "two deep"],
)
def test_vcpus_in_a_pid_namespace_are_told_apart(unshare):
    guest = Guest(before=["unshare", *unshare])
    try:
        vcpus = vcpu_threads(guest.pid)
        with tracking(DirtyRing(find_blocks(guest.pid), vcpus, pid=guest.pid)) as observer:
            guest.write(0, range(300))
            guest.write(1, range(300, 1000))
            assert observer.compare().pages == 1000
            assert observer.vcpu_pages() == ((0, 300), (1, 700))
            assert observer.details()["n-dirty-pages-no-vcpu"] == 0
    finally:
        guest.end()


TRACK = """
import json, sys
import pysampler
from pysampler.memory.source import find_blocks
pid = int(sys.argv[1])
(vector,) = pysampler.track(find_blocks(pid), mode="dirty-ring", calc_time="50ms", pid=pid)
print(vector.n_total_pages)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make pid namespaces")
def test_a_tracker_with_another_namespaces_proc_is_told(guest):
    tracker = subprocess.run(
        ["unshare", "-pf", sys.executable, "-c", TRACK, str(guest.pid)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "/proc shows the process ids of another pid namespace" in tracker.stderr
    assert not guest.is_registered()


def test_the_same_guest_can_be_tracked_again_and_in_the_other_mode(guest):
    for _ in range(2):
        with tracking(
            exact_observer(find_blocks(guest.pid), Mode.DIRTY_BITMAP, pid=guest.pid)
        ) as observer:
            guest.write(0, [1])
            assert observer.compare().pages == 1
        with tracking(
            exact_observer(find_blocks(guest.pid), Mode.DIRTY_RING, pid=guest.pid)
        ) as observer:
            guest.write(1, [1])
            assert observer.compare().pages == 1
            assert observer.vcpu_pages() == ((0, 0), (1, 1))


@pytest.mark.parametrize(
    "tracker", [DirtyBitmap, lambda blocks, pid: DirtyRing(blocks, {}, pid=pid)]
)
def test_only_one_tracks_at_a_time(guest, tracker):
    blocks = find_blocks(guest.pid)
    with tracking(DirtyBitmap(blocks, pid=guest.pid)) as observer:
        with pytest.raises(SourceError, match="is already being tracked"):
            tracker(blocks, pid=guest.pid)
        guest.write(0, [1, 2])
        assert observer.compare().pages == 2


def test_a_process_that_offers_nothing_is_compared_instead():
    guest = Guest(offer="nothing")
    blocks = find_blocks(guest.pid)
    with pytest.raises(MissingFeatureError, match="offers no userfaultfd"):
        DirtyRing(blocks, {}, pid=guest.pid)
    with tracking(exact_observer(blocks, Mode.DIRTY_BITMAP, pid=guest.pid)) as observer:
        guest.write(0, [1, 2])
        assert observer.compare().pages == 2
        assert observer.details()["tracking"] in ("full-comparison", "soft-dirty")
    guest.end()


def test_a_guest_that_ends_is_missed(guest):
    with tracking(DirtyBitmap(find_blocks(guest.pid), pid=guest.pid)) as observer:
        guest.write(0, [1])
        guest.end()
        with pytest.raises(FaultError, match="has ended"):
            observer.compare()


def test_a_guest_that_ends_under_dirty_ring_is_missed(guest):
    vcpus = vcpu_threads(guest.pid)
    with tracking(DirtyRing(find_blocks(guest.pid), vcpus, pid=guest.pid)) as observer:
        guest.write(0, [1])
        guest.end()
        with pytest.raises(FaultError, match="has ended"):
            observer.compare()


def test_an_interrupted_measurement_keeps_its_periods(guest):
    class Clock:
        def __init__(self):
            self.now = 0

        def now_ns(self):
            return self.now

        def wait_until(self, deadline_ns):
            self.now = deadline_ns
            if deadline_ns < 300_000_000:
                guest.write(0, [deadline_ns // 125_000_000])
            else:
                guest.end()

    observer = exact_observer(find_blocks(guest.pid), Mode.DIRTY_BITMAP, pid=guest.pid)
    with (
        Sampler(observer, 1000, "millisecond", Clock()) as sampler,
        pytest.raises(MeasurementInterruptedError) as error,
    ):
        list(sampler)
    assert error.value.measurement.n_dirty_pages == (1, 2)


# Tracks by a ring of one entry that is never harvested, until it is killed.
TRACKER = """
import sys, time
from pysampler.memory.source import find_blocks
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
pid = int(sys.argv[1])
observer = DirtyRing(find_blocks(pid), vcpu_threads(pid), pid=pid, capacity=1, harvest_full=False)
observer.warm_up()
print("tracking", flush=True)
while observer.n_waiting == 0:
    time.sleep(0.001)
print("stopped", flush=True)
time.sleep(600)
"""


def test_a_tracker_that_is_killed_leaves_no_vcpu_stopped(guest):
    tracker = subprocess.Popen(
        [sys.executable, "-c", TRACKER, str(guest.pid)], stdout=subprocess.PIPE
    )
    assert tracker.stdout.readline() == b"tracking\n"
    guest.begin(0, range(1025))
    assert tracker.stdout.readline() == b"stopped\n"
    tracker.send_signal(signal.SIGKILL)
    tracker.communicate()
    guest.wait()
    guest.write(1, range(1025))


@pytest.mark.parametrize("mode", ["dirty-bitmap", "dirty-ring"])
def test_the_command_line_measures_exactly(guest, mode):
    command = ["--pid", str(guest.pid), "--mode", mode, "--calc-time", "300ms", "--quiet"]
    sampler = subprocess.Popen(
        [sys.executable, "-m", "pysampler", "sample", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while sampler.poll() is None:
        guest.write(0, [1, 2])
        guest.write(1, [700])
    out, err = sampler.communicate()
    assert (sampler.returncode, err) == (0, b"")
    vector = Measurement.from_json(out)
    assert vector.n_dirty_pages == (3, 3)
    assert vector.n_sampled_pages == vector.n_total_pages == 1025
    assert vector.mode is Mode(mode)
    assert vector.vcpu_dirty_rate == (((0, 0), (1, 0)) if mode == "dirty-ring" else ())
    guest.write(0, range(1025))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pid", "1", "--mode", "dirty-bitmap", "--seed", "1"], "--seed is used only in mode"),
        (["--pid", "1", "--mode", "dirty-ring", "--profile", "fast"], "--profile is used only"),
        (["--file", "x", "--mode", "dirty-ring"], "mode dirty-ring needs --pid"),
    ],
)
def test_options_of_another_mode_are_refused(words, message, capsys):
    assert main(["sample", *words]) == 2
    assert message in capsys.readouterr().err
