"""Signals to a measurement: none of them loses a vector, or leaves a draft of one."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from subject import LENGTH

from pysampler import Measurement, Status


@pytest.fixture
def command(tmp_path):
    (tmp_path / "ram").write_bytes(bytes(LENGTH))
    return ["sample", "--file", str(tmp_path / "ram"), "-o", str(tmp_path / "vector.json")]


@pytest.fixture
def started(command):
    processes = []

    def start(in_child=lambda: None, **options):
        def prepare():
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
            in_child()

        process = subprocess.Popen(
            [sys.executable, "-m", "pysampler", *command],
            preexec_fn=prepare,  # noqa: PLW1509 - there are no threads
            stdout=subprocess.PIPE, text=True, **{"stderr": subprocess.PIPE, **options},
        )  # fmt: skip
        processes.append(process)
        time.sleep(2)  # nothing tells from outside that a period is over
        assert process.poll() is None
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def vector(tmp_path):
    assert sorted(os.listdir(tmp_path)) == ["ram", "vector.json"]
    return Measurement.from_json((tmp_path / "vector.json").read_text())


def test_signals_after_the_first_take_neither_the_vector_nor_the_exit_code(started, tmp_path):
    process = started()
    several = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    n_sent = 0
    while process.poll() is None:
        process.send_signal(several[n_sent % 3])
        n_sent += 1
        time.sleep(0.0005)
    err = process.stderr.read()
    assert n_sent >= 3
    assert process.returncode == 3
    assert err.startswith("pysampler sample: interrupted; ")
    assert vector(tmp_path).status is Status.MEASURING


# A signal comes where Python discards what its handler raises.
SWALLOWED = """
import os, signal, sys, weakref
from pysampler.cli import main
from pysampler.sampling.passes import Passes
class Passing: pass
def swallow(_): os.kill(os.getpid(), signal.SIGTERM)
real = Passes.{method}
def run(self):
    passing = Passing()
    reference = weakref.ref(passing, swallow)
    del passing
    return real(self)
Passes.{method} = run
sys.exit(main())
"""


@pytest.mark.parametrize("method", ["warm_up", "baseline", "compare"])
def test_a_signal_whose_exception_is_swallowed_ends_sample_too(command, method):
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWED.format(method=method), *command, "--calc-time", "1h"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "KeyboardInterrupt" in done.stderr  # as Python says of what it discards
    assert "pysampler sample: interrupted; " in done.stderr
    assert done.returncode == 3


def test_sighup_keeps_what_was_measured(started, tmp_path):
    process = started()
    process.send_signal(signal.SIGHUP)
    process.wait(30)
    assert process.returncode == 3
    assert len(vector(tmp_path).periods) >= 4


def test_a_terminal_that_hangs_up_takes_no_vector_with_it(started, tmp_path):
    leader, terminal = pty.openpty()
    process = started(
        lambda: fcntl.ioctl(terminal, termios.TIOCSCTTY, 0),
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    os.close(leader)
    process.wait(30)
    assert process.returncode == 3
    assert len(vector(tmp_path).periods) >= 4


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_stays_ignored(started, tmp_path, ignored):
    process = started(lambda: signal.signal(ignored, signal.SIG_IGN))  # as nohup does
    process.send_signal(ignored)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert process.returncode == 3
    vector(tmp_path)


def signalled_in(module, function, when):
    """A program that is sent a SIGTERM before or after the first call of a function."""
    before, after = ("kill()", "") if when == "before" else ("", "kill()")
    return (
        f"import os, signal, sys, {module}; real = {module}.{function}\n"
        "def kill(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "def signalled(*a, **k):\n"
        f"    {before or 'pass'}; made = real(*a, **k); {after or 'pass'}; return made\n"
        f"{module}.{function} = signalled\n"
        "from pysampler.cli import main; sys.exit(main())"
    )


def test_a_signal_while_the_draft_is_made_leaves_nothing(command, tmp_path):
    code = signalled_in("tempfile", "mkstemp", "after")
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "pysampler sample: interrupted\n")
    assert os.listdir(tmp_path) == ["ram"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_while_the_vector_is_written_is_too_late_to_harm(command, tmp_path, when):
    code = signalled_in("os", "replace", when)
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--calc-time", "50ms", "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert vector(tmp_path).status is Status.MEASURED


def test_a_signal_while_a_picture_is_drawn_leaves_nothing(tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    vector = Path(__file__).parents[1] / "golden" / "vector-32gib-memcached.json"
    words = ["predict", vector, "--bandwidth", "10Gbps", "--downtime", "300ms", "--plot", "x.png"]
    done = subprocess.run(
        [sys.executable, "-c", signalled_in("io", "BytesIO", "after"), *words],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, os.listdir(tmp_path)) == (130, [])
    assert done.stderr.endswith("pysampler predict: interrupted\n")
