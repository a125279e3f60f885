"""Memory that somebody fills through userfaultfd, as a restored or post-copied guest's."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from subject import LENGTH, pagemap, subject
from uffd_subject import UFFD, needs_userfaultfd

import pysampler
from pysampler.memory.reader.file import FileReader
from pysampler.memory.reader.process_view import ProcessView
from pysampler.memory.source import find_blocks, named_block, process_fd_block
from pysampler.sampling import workers
from pysampler.vector.interrupted import MeasurementInterruptedError


@pytest.fixture(autouse=True)
def _probed():
    needs_userfaultfd()


# Half of it is there, half will come.
PRIVATE = """
memory = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)
memory.madvise(15)  # MADV_NOHUGEPAGE
"""
MEMFD = """
fd = os.memfd_create("memory-backend-memfd")
os.ftruncate(fd, LENGTH)
memory = mmap.mmap(fd, LENGTH)
"""
HALF = """
for at in range(0, LENGTH // 2, 4096): memory[at:at + 4096] = os.urandom(4096)
half = LENGTH // 2
later = address_of(memory) + half
"""
REGISTERED = """
uffd = uffd_open()
missing(uffd, address_of(memory), LENGTH)
"""
# The process that asked for it passes it on, and keeps none.
HELD_ELSEWHERE = """
uffd = uffd_open()
missing(uffd, address_of(memory), LENGTH)
r, w = os.pipe()
child = os.fork()
if child == 0:
    import time
    libc.prctl(1, 9)
    os.write(w, b"x")
    time.sleep(600)
os.read(r, 1)
os.close(uffd)
"""


def ram_of(process):
    address = int(process("answer = address_of(memory)"))
    return address, named_block(process.pid, f"ram={address:#x}:{LENGTH}")


@pytest.mark.parametrize("memory", [PRIVATE, MEMFD], ids=["private", "memfd"])
@pytest.mark.parametrize("held", [REGISTERED, HELD_ELSEWHERE], ids=["by itself", "elsewhere"])
def test_what_has_not_arrived_is_neither_zero_nor_clean(memory, held):
    with subject(UFFD + memory + HALF + held) as process:
        address, block = ram_of(process)
        before = pagemap(process.pid, address, LENGTH)
        vector = pysampler.sample([block], calc_time="130ms", sample_pages=16384)
        assert pagemap(process.pid, address, LENGTH) == before
    assert vector.n_zero_pages == 0
    assert not any(vector.n_dirty_pages)
    # Half of the samples: 6 standard deviations, 2e-9.
    n = vector.n_sampled_pages
    assert abs(vector.details["baseline"]["unreadable"] - n / 2) < 6 * (n / 4) ** 0.5


@pytest.mark.parametrize("memory", [PRIVATE, MEMFD], ids=["private", "memfd"])
def test_pages_that_arrive_are_not_dirty(memory):
    with subject(UFFD + memory + HALF + REGISTERED) as process:
        _, block = ram_of(process)
        with pysampler.measure([block], calc_time="500ms", sample_pages=16384) as sampler:
            for vector in sampler:
                if len(vector.periods) == 1:
                    process("arrive(uffd, later, os.urandom(half))")
    assert vector.n_zero_pages == 0
    assert vector.n_dirty_pages == (0,) * len(vector.periods)


def test_a_memfd_by_its_descriptor_is_known_to_be_awaited_too():
    with subject(UFFD + MEMFD + HALF + REGISTERED) as process:
        block = process_fd_block(process.pid, int(process("answer = fd")))
        vector = pysampler.sample([block], calc_time="130ms", sample_pages=16384)
    assert vector.n_zero_pages == 0
    assert vector.details["baseline"]["unreadable"] > vector.n_sampled_pages // 3


def test_what_is_missing_once_the_restore_is_over_is_zero():
    with subject(UFFD + PRIVATE + HALF + REGISTERED) as process:
        process("given_up(uffd, address_of(memory), LENGTH)")
        _, block = ram_of(process)
        vector = pysampler.sample([block], calc_time="130ms", sample_pages=16384)
    assert vector.details["baseline"]["unreadable"] == 0
    assert vector.n_zero_pages > vector.n_sampled_pages // 3


def test_holes_beside_a_restore_are_zero():
    other = "\nuffd = uffd_open()\nother = mmap.mmap(-1, LENGTH)\nmissing(uffd, address_of(other), LENGTH)\n"
    with subject(UFFD + PRIVATE + HALF + other) as process:
        _, block = ram_of(process)
        vector = pysampler.sample([block], calc_time="130ms", sample_pages=16384)
    assert vector.details["baseline"]["unreadable"] == 0
    assert vector.n_zero_pages > vector.n_sampled_pages // 3


def test_pages_taken_away_all_the_time_hold_up_no_pass():
    coming_and_going = """
import threading
def breathe():
    while True:
        content = os.urandom(1 << 20)
        for at in range(0, LENGTH, 1 << 20):
            drop(address_of(memory) + at, 1 << 20)
            arrive(uffd, address_of(memory) + at, content)
"""
    with subject(UFFD + PRIVATE + REGISTERED + coming_and_going) as process:
        process(
            "for at in range(0, LENGTH, 1 << 20): arrive(uffd, address_of(memory) + at, b'x' * (1 << 20))"
        )
        _, block = ram_of(process)
        process("threading.Thread(target=breathe, daemon=True).start()")
        vector = pysampler.sample([block], calc_time="2s", sample_pages=16384)
    assert vector.n_dirty_pages[-1] > 0


@pytest.mark.parametrize("held", [REGISTERED, HELD_ELSEWHERE], ids=["by itself", "elsewhere"])
def test_a_page_that_is_punched_out_after_it_was_asked_for_is_not_filled(monkeypatch, held):
    # As if the holes had come since. Were they filled, who brings the pages would fail (EEXIST).
    monkeypatch.setattr(FileReader, "states", lambda _self, _vfns, _order: None)
    with subject(UFFD + MEMFD + HALF + held) as process:
        _, block = ram_of(process)
        before = process("answer = os.fstat(fd).st_blocks")
        pysampler.sample([block], calc_time="130ms", sample_pages=16384)
        assert process("answer = os.fstat(fd).st_blocks") == before


def test_a_userfaultfd_of_an_unrelated_process_changes_nothing():
    with subject(UFFD + PRIVATE + REGISTERED), subject(PRIVATE + HALF) as process:
        view = ProcessView(process.pid)
        assert view.awaited() == []
        assert not view.holds_userfaultfd()
        view.close()


# ---- a reader that waits: pages go missing after they were asked for, unseen ----


@pytest.fixture
def waiting(monkeypatch):
    """Make states() lie, as if the pages had gone after it was asked."""
    monkeypatch.setattr(ProcessView, "holds_userfaultfd", lambda _self: False)
    monkeypatch.setattr(
        "pysampler.core.states_of_process",
        lambda _fd, _address, _size, vfns, _order: (vfns * 0).astype("uint8"),
    )


@pytest.mark.usefixtures("waiting")
def test_a_reader_that_waits_is_given_up_with_a_word_on_userfaultfd(monkeypatch):
    monkeypatch.setattr(workers, "LOOK_EVERY_S", 0.01)
    with subject(UFFD + PRIVATE + HALF + REGISTERED) as process:
        _, block = ram_of(process)
        with pytest.raises(MeasurementInterruptedError, match=r"RAMBlock ram: .*userfaultfd"):
            pysampler.sample([block], calc_time="130ms", threads=2)


@pytest.mark.usefixtures("waiting")
def test_ctrl_c_interrupts_a_caller_whose_reader_waits():
    with subject(UFFD + PRIVATE + HALF + REGISTERED) as process:
        _, block = ram_of(process)
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pysampler.sample([block], calc_time="130ms")
        timer.join()


# All pages are there at the baseline; then they go, unseen.
DECEIVED = """
import sys
from pysampler import core
from pysampler.memory.reader.process_view import ProcessView
ProcessView.holds_userfaultfd = lambda self: False
core.states_of_process = lambda fd, address, size, vfns, order: (vfns * 0).astype("uint8")
from pysampler.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_sample_with_what_it_has(number):
    with subject(UFFD + PRIVATE + REGISTERED) as process:
        process("arrive(uffd, address_of(memory), os.urandom(LENGTH))")
        address, _ = ram_of(process)
        words = ["sample", "--pid", str(process.pid), "--block", f"ram={address:#x}:{LENGTH}"]
        with subprocess.Popen(
            [sys.executable, "-c", DECEIVED, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509
        ) as sample:
            time.sleep(2)  # nothing tells from outside that a period is over
            process("drop(address_of(memory), LENGTH)")
            time.sleep(2)  # the next pass begins, and waits
            assert sample.poll() is None
            sample.send_signal(number)
            out, err = sample.communicate(timeout=30)
    assert sample.returncode == 3, err
    assert err.startswith("pysampler sample: interrupted; ")
    assert len(pysampler.Measurement.from_json(out).periods) >= 4


def test_found_blocks_are_no_other():
    with subject(UFFD + MEMFD + HALF + REGISTERED) as process:
        vector = pysampler.sample(find_blocks(process.pid), calc_time="130ms", sample_pages=16384)
    assert vector.n_zero_pages == 0
