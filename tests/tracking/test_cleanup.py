"""A tracker that dies, is stopped or loses its cleanup process leaves no guest standing."""

import gc
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from writers import PAGE, anonymous

from pysampler import core
from pysampler.errors import FaultError, SourceError
from pysampler.memory.source import buffer_block, find_blocks
from pysampler.sampling.sampler import Sampler
from pysampler.tracking import cleanup as cleanup_module
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
from pysampler.vector.interrupted import MeasurementInterruptedError

pytestmark = pytest.mark.usefixtures("needs_dirty_bitmap", "needs_dirty_ring")


def bitmap(pid):
    return DirtyBitmap(find_blocks(pid), pid=pid)


def ring(pid):
    return DirtyRing(find_blocks(pid), vcpu_threads(pid), pid=pid)


def tight_ring(pid):
    """A ring of one entry that is harvested by compare() alone."""
    vcpus = vcpu_threads(pid)
    return DirtyRing(find_blocks(pid), vcpus, pid=pid, capacity=1, harvest_full=False)


both = pytest.mark.parametrize("observe", [bitmap, ring])


def cleanups(pid="self"):
    """Return the cleanup processes of a process, of this one if no other is named."""
    return [
        int(child)
        for of_thread in Path(f"/proc/{pid}/task").glob("*/children")
        for child in of_thread.read_text().split()
        if b"pysampler.tracking.cleanup_process" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def end_cleanup(signal_number=signal.SIGKILL):
    """End the cleanup process, and wait until it has closed everything."""
    (cleanup,) = cleanups()
    pidfd = os.pidfd_open(cleanup)
    os.kill(cleanup, signal_number)
    select.select([pidfd], [], [])
    os.close(pidfd)


def until(condition):
    """Wait for what another process will bring about for sure."""
    while not condition():
        time.sleep(0.005)


@both
@pytest.mark.parametrize("interpreter", ["/nonexistent/python", "/bin/false", "/bin/true", ""])
def test_without_a_cleanup_process_nothing_is_tracked(guest, observe, interpreter, monkeypatch):
    monkeypatch.setattr(sys, "executable", interpreter)
    with pytest.raises(SourceError, match=r"the cleanup process.*cannot be started"):
        observe(guest.pid)
    assert not guest.is_registered()
    guest.write(0, range(1025))
    monkeypatch.undo()
    observe(guest.pid).close()  # nothing is left locked


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSEGV])
@both
def test_the_end_of_the_cleanup_process_ends_tracking(guest, observe, signal_number):
    observer = observe(guest.pid)
    observer.warm_up()
    observer.baseline()
    guest.write(0, [1])
    assert observer.compare().pages == 1
    end_cleanup(signal_number)
    if observe is ring:  # whose writers wait: at once, not when somebody asks
        until(lambda: not guest.is_registered())
    guest.write(0, range(1025))
    with pytest.raises(FaultError, match="tracking has ended: its cleanup process has ended"):
        observer.compare()
    observer.close()
    assert not guest.is_registered()
    guest.write(1, range(1025))


@both
def test_the_periods_before_the_cleanup_process_ended_are_kept(guest, observe):
    class Clock:
        now = 0

        def now_ns(self):
            return self.now

        def wait_until(self, deadline_ns):
            self.now = deadline_ns
            if deadline_ns < 300_000_000:
                guest.write(0, [deadline_ns // 125_000_000])
            else:
                end_cleanup()

    with (
        Sampler(observe(guest.pid), 1000, "millisecond", Clock()) as sampler,
        pytest.raises(MeasurementInterruptedError, match="cleanup process") as error,
    ):
        list(sampler)
    assert error.value.measurement.n_dirty_pages == (1, 2)


def test_a_waiting_vcpu_goes_on_when_the_cleanup_process_ends(guest):
    observer = tight_ring(guest.pid)
    observer.warm_up()
    guest.begin(0, range(1025))
    until(lambda: observer.n_waiting == 1)
    end_cleanup()
    guest.wait()
    observer.close()


# Tracks by a ring of one entry; when it is told to, it compares and prints what comes of it.
TRACKER = """
import sys, time
from pysampler.errors import FaultError
from pysampler.memory.source import find_blocks
from pysampler.tracking.dirty_ring import DirtyRing, vcpu_threads
pid = int(sys.argv[1])
observer = DirtyRing(find_blocks(pid), vcpu_threads(pid), pid=pid, capacity=1)
observer.warm_up()
observer.baseline()
print("tracking", flush=True)
for line in sys.stdin:
    try:
        print(observer.compare().pages, flush=True)
    except FaultError as error:
        print(error, flush=True)
"""


@pytest.fixture
def tracker(guest):
    process = subprocess.Popen(
        [sys.executable, "-c", TRACKER, str(guest.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdout.readline() == "tracking\n"
    yield process
    process.kill()
    process.communicate()


def test_a_stopped_tracker_lets_the_guest_go(guest, tracker):
    guest.write(0, range(5))
    tracker.send_signal(signal.SIGSTOP)
    guest.begin(0, range(1025))
    guest.begin(1, range(1025))
    guest.wait()
    guest.wait()
    assert not guest.is_registered()
    tracker.send_signal(signal.SIGCONT)
    tracker.stdin.write("\n")
    line = tracker.stdout.readline()
    assert "stopped for longer than 2 s; the guest was let go" in line
    guest.write(0, range(1025))


def test_a_tracker_that_stood_with_its_cleanup_process_counts_no_further(guest, tracker):
    """By then the guest may have let itself go, and what it wrote after that is not known."""
    (cleanup,) = cleanups(tracker.pid)
    for pid in (cleanup, tracker.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(core.CLEANUP_LATE_S + 0.5)
    for pid in (cleanup, tracker.pid):
        os.kill(pid, signal.SIGCONT)
    tracker.stdin.write("\n")
    assert "stood still for 4 s or longer" in tracker.stdout.readline()
    guest.write(0, range(1025))


def test_a_tracker_that_is_stopped_and_killed_lets_the_guest_go(guest, tracker):
    tracker.send_signal(signal.SIGSTOP)
    guest.begin(0, range(1025))
    tracker.kill()
    guest.wait()


def test_a_tracker_that_runs_goes_on(guest, tracker):
    # Longer than a stopped one may take: its beats are heard.
    time.sleep(cleanup_module.SILENCE_S + 1)
    guest.write(0, range(1000))
    tracker.stdin.write("\n")
    assert tracker.stdout.readline() == "1000\n"


def test_a_cleanup_process_that_is_stopped_does_not_hold_up_the_end(guest, monkeypatch):
    monkeypatch.setattr(cleanup_module, "END_S", 0.1)
    observer = ring(guest.pid)
    observer.warm_up()
    (cleanup,) = cleanups()
    os.kill(cleanup, signal.SIGSTOP)
    observer.close()
    assert not guest.is_registered()
    assert not cleanups()


@both
def test_a_dropped_observer_gives_the_guest_back(guest, observe):
    observer = observe(guest.pid)
    observer.warm_up()
    assert guest.is_registered()
    del observer
    gc.collect()
    assert not guest.is_registered()
    assert not cleanups()
    observe(guest.pid).close()


@both
def test_a_dropped_measurement_gives_the_guest_back(guest, observe):
    sampler = Sampler(observe(guest.pid), 60_000)
    assert guest.is_registered()
    del sampler
    gc.collect()
    assert not guest.is_registered()


@both
def test_a_forked_child_does_not_end_tracking(guest, observe):
    observer = observe(guest.pid)
    observer.warm_up()
    observer.baseline()
    child = os.fork()
    if not child:
        observer.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    guest.write(0, [1, 2])
    assert observer.compare().pages == 2
    observer.close()


WRITES_WITH_THE_LOCK_HELD = """
import mmap, os
from pysampler.core import Range, RingSet
from pysampler.memory.source import buffer_block
from pysampler.tracking import dirty_ring

def replace(fd, path, flags=os.O_RDWR):
    os.dup2(os.open(path, flags), fd)

# The handler's: nobody else here has any.
def eventfds():
    links = {int(fd): f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    there = [fd for fd, link in links.items() if os.path.lexists(link)]  # not listdir's own
    return [fd for fd in there if os.readlink(links[fd]) == "anon_inode:[eventfd]"]

# Their handler can release no page: it has another size.
def rings_of_bytes(fd, own_fd, ranges, *others, **options):
    wrong = [Range(r.address, r.length, r.first_bit, page_size=1) for r in ranges]
    return RingSet(fd, own_fd, wrong, *others, **options)

memory = mmap.mmap(-1, 1 << 20)
%(before)s
observer = dirty_ring.DirtyRing([buffer_block(memory)], {})
observer.warm_up()
observer.baseline()
held = os.dup(observer.userfaultfd)  # as a forked child may have it
%(harm)s
memory[:] = bytes(1 << 20)  # holds the interpreter's lock while it waits
print("went on")
"""


@pytest.mark.parametrize(
    ("before", "harm"),
    [
        ("dirty_ring.RingSet = rings_of_bytes", ""),
        ("", "assert eventfds(); [replace(fd, os.devnull) for fd in eventfds()]"),
        ("", "replace(observer.userfaultfd, os.devnull)"),
        ("", "replace(observer.userfaultfd, '/proc/self/maps', os.O_RDONLY)"),
        ("", "os.dup2(os.eventfd(0), observer.userfaultfd)"),
        ("", "os.dup2(os.pipe()[0], observer.userfaultfd)"),
    ],
)
def test_a_handler_that_fails_needs_no_lock_of_the_interpreter(before, harm):
    child = subprocess.run(
        [sys.executable, "-c", WRITES_WITH_THE_LOCK_HELD % {"before": before, "harm": harm}],
        env={**os.environ, "TSAN_OPTIONS": os.environ.get("TSAN_OPTIONS", "") + " report_bugs=0"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (child.stdout, child.stderr, child.returncode) == ("went on\n", "", 0)


def test_a_writer_with_the_lock_is_answered_from_the_first_write():
    # The handler must be in C before anything is protected.
    for _ in range(20):
        memory = anonymous(513)
        observer = DirtyRing([buffer_block(memory)], {})
        observer.warm_up()
        memory[:] = bytes(len(memory))
        observer.baseline()
        memory[0] = memory[512 * PAGE] = 1
        assert observer.compare().pages == 2
        observer.close()
