"""``pysampler migrate`` between real QEMUs."""

import contextlib
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from qmp_fakes import Client
from real_qemu import PROGRAM, PROGRAM_10, Qemu

from pysampler.prediction.records import read_migrations
from pysampler.units import MIB

pytestmark = pytest.mark.integration

SIZE = 128 * MIB
FILLED = 96 * MIB
TIMEOUT_S = 60


@pytest.fixture(params=[(PROGRAM,), PROGRAM_10], ids=["installed", "10"])
def pair(request, tmp_path):
    """Yield a source whose RAM is filled, and the address of a destination that waits."""
    ram = ("-machine", "pc,memory-backend=ram", "-m", "128M",
           "-object", f"memory-backend-memfd,share=on,id=ram,size={SIZE}")  # fmt: skip
    incoming = f"unix:{tmp_path}/incoming"
    with contextlib.ExitStack() as stack:
        for name, more in (("src", ()), ("dst", ("-incoming", incoming))):
            folder = tmp_path / name
            folder.mkdir()
            qmp = ("-qmp", f"unix:{folder}/own,server=on,wait=off")
            qemu = Qemu(folder, *ram, *qmp, *more, program=request.param)
            stack.enter_context(qemu)
            if name == "src":
                random = np.random.default_rng(1).integers(0, 256, FILLED, np.uint8)
                qemu.shared_memory(SIZE).reshape(-1)[16 * MIB : 16 * MIB + FILLED] = random
        yield f"unix:{tmp_path}/src/own", incoming


@contextlib.contextmanager
def migrating(pair, *words):
    source, incoming = pair
    command = [sys.executable, "-m", "pysampler", "migrate", "--from", source, "--to", incoming]
    with subprocess.Popen(
        [*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_migrates_measures_and_records(pair, tmp_path):
    path = tmp_path / "records.jsonl"
    words = ("--bandwidth", "100MiB/s", "--downtime", "200ms", "--measure", "500ms", "-o", path)
    with migrating(pair, "--parameter", "cpu-throttle-initial=30", *words) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert out.startswith("status        completed")
    assert "sampling process" in err
    assert "pass 1, " in err
    (migration,) = read_migrations([path.read_bytes()])
    assert migration.bandwidth == 100 * MIB
    assert migration.downtime_limit_ms == 200
    assert migration.converged
    assert migration.total_ms >= 1000 * (FILLED / MIB - 20) / 100  # the last 200 ms go unlimited
    vector = migration.vectors["vector"]
    assert vector.dirty_rate == 0
    assert abs(1 - vector.n_zero_pages / vector.n_sampled_pages - FILLED / SIZE) < 0.05


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_and_the_guest_stays_at_the_source(pair, number):
    with migrating(pair, "--bandwidth", "2MiB/s", "--downtime", "1ms") as process:
        assert "pass 1, " in process.stderr.readline()
        process.send_signal(number)
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "pysampler migrate: interrupted: the migration is cancelled"
    assert "The guest goes on at the source" in out
    with Client(pair[0]) as client:
        client.negotiate()
        reply = json.loads(client.ask('{"execute": "query-migrate"}'))
    assert reply["return"]["status"] == "cancelled"


def test_nobody_at_the_destination_is_one_line_with_qemus_words(pair, tmp_path):
    nobody = f"unix:{tmp_path}/nobody"
    with migrating((pair[0], nobody)) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (1, "")
    (line,) = err.splitlines()
    assert "No such file or directory" in line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--parameter", "cpu-throttle-initial=0"], "migrate-set-parameters: Parameter "),
        (["--capability", "no-such"], "migrate-set-capabilities: "),
    ],
)
def test_what_qemu_refuses_is_told_in_its_words(pair, words, text):
    with migrating(pair, *words) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (1, "")
    assert f"pysampler migrate: the source refuses {text}" in err
