# SPDX-License-Identifier: MIT
"""Processes that migrate are killed, stalled, told to end and lied to: one guest runs, none hangs."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from guests import END_S, MIB, Process

from pysampler.host.qmp_client import QmpError

# Writes to the first 4 MiB only, so that what is above them never changes.
WORDS = ("--memory", "32M", "--zero", "25%", "--workload", "uniform:wps=100k,ws=4M")
KEPT = slice(8 * MIB // 8, 24 * MIB // 8)
LOST = {
    "Unable to write to socket: Broken pipe",
    "Unable to write to socket: Connection reset by peer",
}


@pytest.fixture
def start(tmp_path):
    """Start guests; all end with the test."""
    with contextlib.ExitStack() as stack:

        def start(name, *words):
            guest = Process(tmp_path, name, *(words or WORDS))
            stack.callback(guest.close)
            return guest

        yield start


@pytest.fixture
def uri(tmp_path):
    return f"unix:{tmp_path}/link"


@pytest.fixture
def make_pair(start, uri):
    def make(*words, exit_on_error=True):
        source = start("source", *WORDS, *words)
        source.set("events")
        other = start("other", *WORDS, "--incoming", "defer")
        other.ask("migrate-incoming", uri=uri, exit_on_error=exit_on_error)
        return source, other

    return make


def no_file(uri):
    return not os.path.lexists(uri.removeprefix("unix:"))


# ---- a migration that is as far as a test wants it ----


def in_setup(source, uri):
    """It asks nobody: the destination just waits."""


def in_pass_1(source, uri):
    source.set(max_bandwidth=4 * MIB)
    source.ask("migrate", uri=uri)
    source.wait_for("active")
    time.sleep(0.2)


def in_pass_3(source, uri):
    """It never ends: a window sends less than the vCPU writes to in it."""
    source.set(max_bandwidth=16 * MIB, downtime_limit=1)
    source.ask("migrate", uri=uri)
    source.wait_for_pass(3)


def before_the_last_pass(source, uri):
    source.set("pause-before-switchover")
    source.ask("migrate", uri=uri)
    source.wait_for("pre-switchover")


def in_the_last_pass(source, uri):
    """The link carries 8 MiB/s here, and all is left for the last pass."""
    source.set(downtime_limit=60_000)
    source.ask("migrate", uri=uri)
    source.wait_for("device")
    time.sleep(0.1)


MOMENTS = [in_pass_1, in_pass_3, before_the_last_pass, in_the_last_pass]


def link_for(moment):
    return ("--link-speed", "8MiB/s") if moment is in_the_last_pass else ()


def check_goes_on(source, kept):
    """The source runs, has lost nothing, and ends as it should."""
    deadline = time.monotonic() + END_S
    while source.run_state() != "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert source.writes_go_on()
    assert np.array_equal(source.ram[KEPT], kept)
    assert source.end() == (0, "")
    assert not os.path.lexists(source.qmp_path)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_destination_that_is_killed(make_pair, uri, moment):
    source, other = make_pair(*link_for(moment))
    kept = source.ram[KEPT].copy()
    moment(source, uri)
    other.kill()
    if moment is before_the_last_pass:
        source.ask("migrate-continue", state="pre-switchover")
    info = source.wait_for("failed", limit_s=END_S)
    assert info["error-desc"] in LOST
    assert set(info) == {"status", "error-desc"}
    assert no_file(uri)
    check_goes_on(source, kept)


def test_a_destination_that_is_killed_while_it_waits(make_pair, start, uri):
    source, other = make_pair()
    kept = source.ram[KEPT].copy()
    other.kill()
    source.ask("migrate", uri=uri)
    desc = f"Failed to connect to '{uri[5:]}': Connection refused"
    assert source.wait_for("failed")["error-desc"] == desc
    # The next one takes the place of the dead one's file, and the guest migrates there.
    again = start("again", *WORDS, "--incoming", uri)
    source.ask("migrate", uri=uri)
    source.wait_for("completed")
    again.wait_for("completed")
    assert again.writes_go_on()
    assert np.array_equal(again.ram[KEPT], kept)


@pytest.mark.parametrize(("moment", "stays"), list(zip(MOMENTS, [False, True] * 2, strict=True)))
def test_a_source_that_is_killed(make_pair, uri, moment, stays):
    source, other = make_pair(*link_for(moment), exit_on_error=not stays)
    moment(source, uri)
    source.kill()
    if not stays:
        code, words = other.ended()
        assert code == 1
        assert words == "pysampler guest: load of migration failed: Invalid argument\n"
    else:
        assert other.wait_for("failed", limit_s=END_S) == {
            "status": "failed",
            "error-desc": "load of migration failed: Invalid argument",
        }
        assert other.run_state() == "inmigrate"
        assert other.end() == (0, "")
    assert no_file(uri)
    assert not os.path.lexists(other.qmp_path)


def by_sigterm(guest):
    guest.signal(signal.SIGTERM)


def by_quit(guest):
    guest.ask("quit")


TOLD = [
    (in_setup, by_sigterm),
    (in_pass_1, by_quit),
    (in_pass_3, by_sigterm),
    (before_the_last_pass, by_quit),
    (in_the_last_pass, by_sigterm),
]


@pytest.mark.parametrize(("moment", "how"), TOLD)
def test_a_source_that_is_told_to_end(make_pair, uri, moment, how):
    source, other = make_pair(*link_for(moment))
    moment(source, uri)
    how(source)
    assert source.ended() == (0, "")
    if moment is in_setup:
        assert other.run_state() == "inmigrate"
        assert other.end() == (0, "")
    else:
        assert other.ended()[0] == 1
    assert no_file(uri)


@pytest.mark.parametrize(("moment", "how"), TOLD)
def test_a_destination_that_is_told_to_end(make_pair, uri, moment, how):
    source, other = make_pair(*link_for(moment))
    kept = source.ram[KEPT].copy()
    moment(source, uri)
    how(other)
    assert other.ended() == (0, "")
    assert no_file(uri)
    if moment is before_the_last_pass:
        source.ask("migrate-continue", state="pre-switchover")
    if moment is not in_setup:
        assert source.wait_for("failed", limit_s=END_S)["error-desc"] in LOST
    check_goes_on(source, kept)


@pytest.mark.parametrize("moment", [in_pass_1, in_the_last_pass])
def test_a_destination_that_stands_still_does_not_hold_a_cancel(make_pair, uri, moment):
    source, other = make_pair(*link_for(moment))
    kept = source.ram[KEPT].copy()
    moment(source, uri)
    other.signal(signal.SIGSTOP)
    source.set(max_bandwidth=0)
    time.sleep(0.3)
    began = time.monotonic()
    source.ask("migrate_cancel")
    assert source.wait_for("cancelled") == {"status": "cancelled"}
    assert time.monotonic() - began < 2
    other.signal(signal.SIGCONT)
    assert other.ended()[0] == 1
    check_goes_on(source, kept)


@pytest.mark.parametrize("how", [by_sigterm, by_quit])
def test_a_destination_that_stands_still_does_not_hold_the_end(make_pair, uri, how):
    source, other = make_pair()
    in_pass_1(source, uri)
    other.signal(signal.SIGSTOP)
    source.set(max_bandwidth=0)
    time.sleep(0.3)
    how(source)
    assert source.ended() == (0, "")
    other.signal(signal.SIGCONT)
    assert other.ended()[0] == 1


# ---- more than two guests ----


def test_a_second_source_is_turned_away(make_pair, start, uri):
    source, other = make_pair()
    second = start("second")
    in_pass_1(source, uri)
    second.ask("migrate", uri=uri)
    desc = f"Failed to connect to '{uri[5:]}': No such file or directory"
    assert second.wait_for("failed")["error-desc"] == desc
    assert second.writes_go_on()
    source.set(max_bandwidth=0)
    source.wait_for("completed")
    assert other.wait_for("completed") == {"status": "completed"}
    assert other.writes_go_on()


def test_a_destination_does_not_migrate_to_itself(make_pair, uri):
    source, other = make_pair()
    with pytest.raises(QmpError, match="Guest is waiting for an incoming migration"):
        other.ask("migrate", uri=uri)
    source.ask("migrate", uri=uri)
    source.wait_for("completed")
    other.wait_for("completed")


def test_a_source_that_sends_to_its_own_qmp_can_still_end(start):
    guest = start("guest")
    guest.ask("migrate", uri=f"unix:{guest.qmp_path}")  # it waits behind this client
    guest.wait_for("active")
    guest.ask("migrate_cancel")
    guest.wait_for("cancelled")
    guest.ask("migrate", uri=f"unix:{guest.qmp_path}")
    guest.wait_for("active")
    guest.qmp.close()  # now RAM is a client's commands
    time.sleep(0.3)
    assert guest.writes_go_on()
    assert guest.end() == (0, "")


def test_a_guest_migrates_on_and_back(start, tmp_path):
    guests = [start("a")]
    kept = guests[0].ram[KEPT].copy()
    for name in ("b", "c", "a-again"):
        there = f"unix:{tmp_path}/to-{name}"
        guests.append(start(name, *WORDS, "--incoming", there))
        guests[-2].ask("migrate", uri=there)
        guests[-2].wait_for("completed")
        guests[-1].wait_for("completed")
        assert guests[-2].run_state() == "postmigrate"
        assert guests[-1].writes_go_on()
        assert np.array_equal(guests[-1].ram[KEPT], kept)
    # The reply is about the last migration that the guest took part in.
    assert "ram" in guests[1].info()
    for guest in guests:
        assert guest.end() == (0, "")


# ---- where it listens ----


def test_the_ready_line_says_where_it_waits(start, uri):
    other = start("other", *WORDS, "--incoming", "tcp:127.0.0.1:0")
    there = other.ready["incoming"]
    port = other.info()["socket-address"][0]["port"]
    assert there == f"tcp:127.0.0.1:{port}"
    assert int(port) > 0
    source = start("source")
    assert source.ready["incoming"] is None
    source.ask("migrate", uri=there)
    source.wait_for("completed")
    other.wait_for("completed")
    assert start("unix", *WORDS, "--incoming", uri).ready["incoming"] == uri
    assert start("defer", *WORDS, "--incoming", "defer").ready["incoming"] is None


def test_a_port_that_is_free_is_found_by_migrate_incoming(start):
    other = start("other", *WORDS, "--incoming", "defer")
    other.ask("migrate-incoming", uri="tcp:127.0.0.1:0")
    port = other.info()["socket-address"][0]["port"]
    source = start("source")
    source.ask("migrate", uri=f"tcp:127.0.0.1:{port}")
    source.wait_for("completed")
    other.wait_for("completed")


def refused(*words):
    done = subprocess.run(
        [sys.executable, "-m", "pysampler", "guest", *WORDS, *words],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.removeprefix("pysampler guest: ")


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--incoming", ""], 2, "unknown migration protocol: "),
        (["--incoming", "here"], 2, "unknown migration protocol: here"),
        (["--incoming", "tcp:10.0.0.1:5"], 2, "loopback"),
        (["--incoming", "tcp:127.0.0.1"], 2, "error parsing address '127.0.0.1'"),
        (["--incoming", "tcp:127.0.0.1:65536"], 2, "a port is a number from 0 to 65535"),
        (["--incoming", "unix:"], 2, "invalid Unix socket address"),
        (["--incoming", "unix:" + "x" * 200], 2, "at most 107 bytes"),
        (["--incoming", "exec:true"], 2, "no migration over exec:"),
        (["--incoming", "unix:/nowhere/at/all"], 1, "Failed to bind socket to /nowhere/at/all: "),
        (["--incoming", "unix:/etc/passwd"], 1, "Failed to bind socket to /etc/passwd: "),
        (["--incoming", "defer"], 2, "--qmp"),
        (["--link-speed", "0"], 2, "--link-speed: '0' is not between"),
        (["--link-speed", "fast"], 2, "--link-speed: 'fast' is not a rate"),
        (["--link-speed", "-1"], 2, ""),
        (["--link-speed", "0.4"], 2, "--link-speed"),
    ],
)
def test_what_cannot_be_is_one_line(words, code, text):
    got, said = refused(*words)
    assert (got, said.count("\n")) == (code, 1), said
    assert text in said


def test_its_socket_is_for_its_user_alone(start, uri):
    start("other", *WORDS, "--incoming", uri)
    assert os.stat(uri[5:]).st_mode & 0o777 == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="gives files away")
def test_nothing_of_another_users_is_used(start, tmp_path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(f"{tmp_path}/theirs")
    os.chown(f"{tmp_path}/theirs", 12345, 12345)
    assert "another user's" in refused("--incoming", f"unix:{tmp_path}/theirs")[1]
    os.symlink(tmp_path, f"{tmp_path}/way")
    os.chown(f"{tmp_path}/way", 12345, 12345, follow_symlinks=False)
    code, said = refused("--incoming", f"unix:{tmp_path}/way/link")
    assert code == 1
    assert said.count("\n") == 1
    assert not os.path.lexists(f"{tmp_path}/link")
    # And no RAM is sent to a server of theirs.
    program = (
        f"import os, socket, time; s = socket.socket(socket.AF_UNIX); s.bind('{tmp_path}/server');"
        " os.setuid(12345); s.listen(); print(flush=True); time.sleep(60)"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        server.stdout.readline()
        source = start("source")
        source.ask("migrate", uri=f"unix:{tmp_path}/server")
        assert "a process of another user" in source.wait_for("failed")["error-desc"]
    finally:
        server.kill()
        server.communicate()


def test_a_guest_that_is_being_measured_migrates_afterwards(make_pair, uri):
    source, other = make_pair()
    source.qmp.execute("calc-dirty-rate", {"calc-time": 1, "mode": "dirty-bitmap"})
    source.ask("migrate", uri=uri)
    assert "wait until that has ended" in source.wait_for("failed")["error-desc"]
    while source.ask("query-dirty-rate")["status"] != "measured":
        time.sleep(0.05)
    assert other.info()["status"] == "setup"  # nobody has bothered it
    source.ask("migrate", uri=uri)
    source.wait_for("completed")
    other.wait_for("completed")


# ---- one of both runs ----


def test_a_cancel_at_the_last_moment_leaves_one_guest_running(start, tmp_path):
    rng = random.Random(1)
    slow = (*WORDS, "--link-speed", "50MiB/s")  # all 24 MiB are left for the last pass
    source = start("source", *slow)
    for number in range(8):
        there = f"unix:{tmp_path}/link-{number}"
        other = start(f"other-{number}", *slow, "--incoming", there)
        source.set(downtime_limit=60_000)
        source.ask("migrate", uri=there)
        source.wait_for("device")
        time.sleep(rng.uniform(0.42, 0.5))
        source.ask("migrate_cancel")
        if source.wait_for("cancelled", "completed", limit_s=END_S)["status"] == "completed":
            other.wait_for("completed")
            assert source.run_state() == "postmigrate"
            assert other.writes_go_on()
            source = other
        else:
            assert other.ended()[0] == 1
            assert source.writes_go_on()
            assert source.run_state() == "running"


def test_ram_of_another_size_is_told_at_the_destination(start, uri):
    source = start("source")
    other = start("other", "--memory", "16M", "--incoming", uri)
    source.ask("migrate", uri=uri)
    code, words = other.ended()
    assert code == 1
    assert "pc.ram has 32 MiB there and 16 MiB here; start this guest with the same size" in words
    assert source.wait_for("failed", limit_s=END_S)["error-desc"] in LOST
    assert source.writes_go_on()
