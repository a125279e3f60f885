"""``pysampler migrate`` between two emulated guests."""

import contextlib
import json
import signal
import subprocess
import sys

import pytest
from qmp_fakes import Client

from pysampler.prediction.records import read_migrations

PYSAMPLER = [sys.executable, "-m", "pysampler"]
TIMEOUT_S = 60


@contextlib.contextmanager
def guest(address, *words):
    with subprocess.Popen(
        [*PYSAMPLER, "guest", "--memory=64M", f"--qmp={address}", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            json.loads(process.stdout.readline())
            yield process
        finally:
            process.kill()


@pytest.fixture
def pair(tmp_path):
    """Yield the QMP addresses of source and destination, and where the latter waits."""
    addresses = [f"unix:{tmp_path}/{name}" for name in ("src", "dst", "incoming")]
    with (
        guest(addresses[0], "--workload=uniform:wps=5k,ws=16M", "--zero=25%"),
        guest(addresses[1], f"--incoming={addresses[2]}"),
    ):
        yield addresses


@contextlib.contextmanager
def migrating(pair, *words):
    command = [*PYSAMPLER, "migrate", "--from", pair[0], "--to", pair[2]]
    with subprocess.Popen(
        [*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def status(address):
    with Client(address) as client:
        client.negotiate()
        return json.loads(client.ask('{"execute": "query-status"}'))["return"]["status"]


def test_a_guest_is_measured_migrated_and_recorded(pair, tmp_path):
    path = tmp_path / "records.jsonl"
    words = ("--bandwidth=100MiB/s", "--downtime=300ms", "--measure=500ms", "-o", path)
    with migrating(pair, *words) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert out.startswith("status        completed")
    assert "The guest is at the destination" in out
    assert [status(address) for address in pair[:2]] == ["postmigrate", "running"]
    (migration,) = read_migrations([path.read_bytes()])
    assert migration.converged
    assert migration.vectors["vector"].dirty_rate > 0


@pytest.mark.parametrize(
    "words",
    [
        ["--capability=auto-converge", "--parameter=max-cpu-throttle=80"],
        ["--capability=x-aggression", "--parameter=x-aggression-level=0.25"],
        ["--capability=dirty-limit", "--parameter=x-dirty-limit-method=v1"],
    ],
)
def test_a_guest_takes_the_settings(pair, words):
    with migrating(pair, "--bandwidth=100MiB/s", *words) as process:
        err = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 0, err


def test_ctrl_c_leaves_the_guest_running_at_the_source(pair):
    with migrating(pair, "--bandwidth=1MiB/s", "--downtime=1ms") as process:
        assert "pass 1, " in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=TIMEOUT_S)[1]
    assert process.returncode == 130
    assert err.splitlines()[-1] == "pysampler migrate: interrupted: the migration is cancelled"
    assert status(pair[0]) == "running"


def test_nobody_at_the_destination_is_one_line(pair, tmp_path):
    nobody = f"unix:{tmp_path}/nobody"
    with migrating([pair[0], pair[1], nobody]) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("pysampler migrate: the migration is failed: Failed to connect to ")
    assert len(err.splitlines()) == 1
