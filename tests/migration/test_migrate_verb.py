# SPDX-License-Identifier: MIT
"""``pysampler migrate`` and ``sample`` on emulated guests that really migrate."""

import json
import resource
import signal
import subprocess
import sys
import time

import pytest
from guests import MIB, Process

from pysampler.prediction.records import read_migrations

WORDS = ("--memory", "32M", "--vcpus", "2", "--workload", "uniform:wps=2k,ws=8M")


@pytest.fixture
def pair(tmp_path):
    guests = []
    try:
        guests.append(Process(tmp_path, "source", *WORDS))
        guests[0].qmp.close()  # the verb is the client now
        guests.append(Process(tmp_path, "other", *WORDS, "--incoming", f"unix:{tmp_path}/link"))
        yield guests
    finally:
        for guest in guests:
            guest.close()


def pysampler(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "pysampler", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def migrate(source, other, *words, **options):
    ways = ("--from", source.ready["qmp"], "--to", other.ready["incoming"])
    return pysampler("migrate", *ways, *words, **options)


def said(process, timeout=30):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for_line(process, words):
    for line in process.stderr:
        if words in line:
            return
    pytest.fail(f"{words!r} was not said")


def test_a_record_of_it_is_evaluated_and_the_guest_migrates_on(pair, tmp_path):
    source, other = pair
    path = tmp_path / "records.jsonl"
    words = ("--bandwidth", "32MiB/s", "--downtime", "100ms", "--measure", "500ms", "-o", path)
    code, out, err = said(migrate(source, other, *words))
    assert code == 0, err
    assert "sampling process" in err
    assert "pass 1" in err
    assert "completed" in out
    assert "The guest is at the destination" in out
    assert other.run_state() == "running"
    (record,) = read_migrations(path.read_bytes().splitlines())
    assert record.bandwidth == 32 * MIB
    # The guest that came can be measured and migrated on, as well as the first time.
    other.qmp.close()
    third = Process(tmp_path, "third", *WORDS, "--incoming", f"unix:{tmp_path}/on")
    try:
        code, out, err = said(migrate(other, third, *words))
        assert code == 0, err
        assert "completed" in out
        assert third.writes_go_on()
    finally:
        third.close()
    assert len(read_migrations(path.read_bytes().splitlines())) == 2
    code, out, _ = said(pysampler("predict", "--evaluate", path))
    assert code == 0
    assert out


def check_interrupted(process, source, other):
    code, _, err = said(process)
    assert code == 130, err
    assert "interrupted: the migration is cancelled" in err
    assert other.ended()[0] == 1
    assert source.writes_go_on()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_sends(pair, number):
    source, other = pair
    process = migrate(source, other, "--bandwidth", "2MiB/s")
    wait_for_line(process, "pass 1")
    process.send_signal(number)
    check_interrupted(process, source, other)


def test_a_signal_in_the_pause_before_the_switchover(pair):
    source, other = pair
    process = migrate(source, other, "--capability", "pause-before-switchover")
    other.wait_for("active")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    check_interrupted(process, source, other)


def test_a_signal_while_it_measures(pair):
    source, other = pair
    process = migrate(source, other, "--measure", "20s")
    wait_for_line(process, "sampling process")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    code, out, _ = said(process, 5)
    assert (code, out) == (130, "")
    assert other.info()["status"] == "setup"  # nobody has come
    assert source.writes_go_on()
    # Nothing is left behind that holds up the next one.
    assert said(migrate(source, other))[0] == 0


def no_large_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def test_a_record_that_does_not_fit_on_the_disk_is_no_lost_guest(pair, tmp_path):
    source, other = pair
    words = ("--measure", "50ms", "-o")
    code, out, err = said(migrate(source, other, *words, "/dev/full"))
    assert (code, out) == (1, "")
    assert err == (
        "pysampler migrate: cannot write /dev/full: it is no regular file; name another file\n"
    )
    assert other.info()["status"] == "setup"  # it was refused before anything moved
    path = tmp_path / "records.jsonl"
    code, out, err = said(migrate(source, other, *words, path, preexec_fn=no_large_files))
    assert code == 1
    assert "completed" in out
    assert f"cannot write {path}: File too large" in err.splitlines()[-1]
    assert path.read_bytes() in {b"", path.read_bytes()[:100]}
    assert other.run_state() == "running"
    assert other.writes_go_on()


def test_a_destination_that_is_killed_is_told_in_one_line(pair):
    source, other = pair
    process = migrate(source, other, "--bandwidth", "2MiB/s")
    wait_for_line(process, "pass 1")
    other.kill()
    code, out, err = said(process)
    assert (code, out) == (1, "")
    assert "the migration is failed: Unable to write to socket: " in err.splitlines()[-1]
    assert source.writes_go_on()


def test_a_source_that_is_killed_is_told_in_one_line(pair):
    source, other = pair
    process = migrate(source, other, "--bandwidth", "2MiB/s")
    wait_for_line(process, "pass 1")
    source.kill()
    code, out, err = said(process)
    assert (code, out) == (1, "")
    assert "Traceback" not in err
    assert other.ended()[0] == 1


def test_a_second_run_finds_the_guest_gone(pair):
    source, other = pair
    assert said(migrate(source, other))[0] == 0
    code, out, err = said(migrate(source, other))
    assert (code, out) == (1, "")
    assert "Can't migrate the vm that was paused due to previous migration" in err


@pytest.mark.parametrize("mode", ["page-sampling", "dirty-bitmap", "dirty-ring"])
def test_a_guest_that_migrates_is_sampled(pair, mode):
    source, other = pair
    process = migrate(source, other, "--bandwidth", "1MiB/s")
    wait_for_line(process, "pass 1")
    words = ("--pid", source.pid, "--mode", mode, "--calc-time", "1s")
    if mode == "page-sampling":
        words += ("--sample-pages", "16384")  # 512 pages: 6.9 MiB +- 0.6, so 6 sigma to 3 MiB
    code, out, err = said(pysampler("sample", *words))
    assert code == 0, err
    # 4000 writes a second into 8 MiB dirty a good 7 MiB of them.
    assert 3 <= json.loads(out)["dirty-rate"] <= 12
    process.send_signal(signal.SIGINT)
    check_interrupted(process, source, other)


def test_workloads_come_with_the_guest(tmp_path):
    source = Process(tmp_path, "source", *WORDS)
    words = ("--memory", "32M", "--vcpus", "2", "--workload", "idle", "--seed", "9")
    other = Process(tmp_path, "other", *words, "--incoming", f"unix:{tmp_path}/link")
    try:
        source.ask("migrate", uri=other.ready["incoming"])
        source.wait_for("completed")
        other.wait_for("completed")
        assert other.writes_go_on()
    finally:
        source.close()
        other.close()
