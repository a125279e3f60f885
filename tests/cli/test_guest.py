"""`pysampler guest` as users run it."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest

import pysampler
from pysampler.source import find_blocks

GUEST = [sys.executable, "-m", "pysampler", "guest"]


@contextmanager
def guest(*arguments):
    """A guest that is ready; yields its process, whose `ready` is the line it printed."""
    with subprocess.Popen(
        [*GUEST, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            process.ready = json.loads(process.stdout.readline())
            yield process
        finally:
            process.kill()


def test_it_says_where_everything_is():
    with guest("--memory=3M", "--block=vga=132K", "--vcpus=2", "--truth") as process:
        ready = process.ready
        assert ready["pid"] == process.pid
        assert [(b["idstr"], b["length"]) for b in ready["blocks"]] == [
            ("pc.ram", 3 << 20),
            ("vga", 132 << 10),
        ]
        for block in ready["blocks"]:
            name = os.readlink(f"/proc/{process.pid}/fd/{block['fd']}")
            assert name == f"/memfd:memory-backend-memfd:{block['idstr']} (deleted)"
            with open(f"/proc/{process.pid}/maps") as maps:
                assert any(line.startswith(f"{block['address']:x}-") for line in maps)
        assert os.stat(f"/proc/{process.pid}/fd/{ready['truth']['fd']}").st_size == 8 * (768 + 33)


def test_its_blocks_are_found_by_pid():
    with guest("--memory=3M", "--block=vga=132K") as process:
        found = [(block.idstr, block.used_length) for block in find_blocks(process.pid)]
    assert found == [("pc.ram", 3 << 20), ("vga", 132 << 10)]


def test_sampling_it_finds_its_zero_pages_and_fills_no_hole():
    # 16384 x 64 / 1024 = 1024 samples, 60 % of them zero: within 8 standard deviations of 15.7.
    with guest("--memory=64M", "--zero=60%", "--seed=7") as process:
        fd = process.ready["blocks"][0]["fd"]
        before = os.stat(f"/proc/{process.pid}/fd/{fd}").st_blocks
        vector = pysampler.sample(find_blocks(process.pid), calc_time="50ms", sample_pages=16384)
        assert os.stat(f"/proc/{process.pid}/fd/{fd}").st_blocks == before
    assert vector.n_sampled_pages == 1024
    assert abs(vector.n_zero_pages - 614) < 126
    assert vector.n_dirty_pages[-1] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number):
    with guest("--memory=1M", "--workload=uniform:wps=max") as process:
        process.send_signal(number)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_its_counters_count_on_while_it_runs():
    with guest("--memory=1M", "--workload=1=uniform", "--vcpus=2") as process:
        path = f"/proc/{process.pid}/fd/{process.ready['counters']['fd']}"
        counts = []
        while len(counts) < 3:
            slots = np.fromfile(path, dtype=np.uint64).reshape(-1, 8)
            assert slots[0, 0] == 0
            if not counts or slots[1, 0] > counts[-1]:
                counts.append(slots[1, 0])
            time.sleep(0.001)


def test_a_schedule_of_phases_is_run(tmp_path):
    schedule = tmp_path / "phases.json"
    schedule.write_text('{"phases": [{"for": "50ms", "workload": "idle"}, {"workload": "sweep"}]}')
    with guest("--memory=1M", f"--workload-file={schedule}") as process:
        path = f"/proc/{process.pid}/fd/{process.ready['counters']['fd']}"
        while np.fromfile(path, dtype=np.uint64)[0] == 0:
            time.sleep(0.001)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--memory=1000T"], 1, "the guest can grow to"),
        (["--memory=5000"], 2, "pc.ram: 5000 bytes are no whole number of pages"),
        (["--memory=x"], 2, "--memory: 'x' is not a size"),
        (["--vcpus=0"], 2, "--vcpus: 0 is not from 1 to 255"),
        (["--vcpus=256"], 2, "--vcpus: 256"),
        (["--seed=-1"], 2, "--seed: -1 is not from 0"),
        (["--zero=101%"], 2, "--zero: 101% is more than all"),
        (["--block=vga"], 2, "--block: 'vga' is not NAME=SIZE"),
        (["--block=a/../ b=1M"], 2, "is not NAME=SIZE"),
        (["--block=pc.ram=1M"], 2, "pc.ram: two blocks of this name"),
        (["--workload=nonsense"], 2, "no such workload"),
        (["--workload=uniform:ws=2G"], 2, "ws is larger than pc.ram"),
        (["--workload=idle", "--workload-file=x"], 2, "give one of them"),
        (["--workload-file=/nowhere"], 1, "/nowhere: No such file"),
    ],
)
def test_wrong_usage_gets_one_line_and_an_exit_code(arguments, code, message):
    result = subprocess.run(
        [*GUEST, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
