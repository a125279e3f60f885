"""Exact modes say what memory they need, and refuse what does not fit before they take any."""

import mmap
import os
import subprocess
import sys

import pytest

from pysampler.cli import main
from pysampler.errors import SourceError
from pysampler.host import machine
from pysampler.memory.source import buffer_block, file_block
from pysampler.tracking import room
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing
from pysampler.tracking.full_comparison import FullComparison

OBSERVE = {
    "DirtyBitmap([block])": lambda block: DirtyBitmap([block]),
    "DirtyRing([block], {})": lambda block: DirtyRing([block], {}),
    "FullComparison([block])": lambda block: FullComparison([block]),
}

LIMITED = """
import mmap, resource
from pysampler.errors import SourceError
from pysampler.memory.source import buffer_block
from pysampler.tracking.dirty_bitmap import DirtyBitmap
from pysampler.tracking.dirty_ring import DirtyRing
from pysampler.tracking.full_comparison import FullComparison
memory = mmap.mmap(-1, 4 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
block = buffer_block(memory)
with open("/proc/self/statm") as statm:
    size = int(statm.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (16 << 20),) * 2)
try:
    OBSERVE
except SourceError as error:
    print(error)
"""


@pytest.mark.parametrize("observe", OBSERVE)
def test_ulimit_v_is_kept_to(observe):
    child = subprocess.run(
        [sys.executable, "-c", LIMITED.replace("OBSERVE", observe)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stderr == ""
    assert child.stdout.startswith("exact tracking of 1048576 pages needs ")
    assert "are left of the limit of address space (ulimit -v)" in child.stdout


@pytest.mark.parametrize("observe", OBSERVE)
def test_what_is_not_available_is_not_taken(observe, monkeypatch):
    block = buffer_block(mmap.mmap(-1, 1 << 20))
    monkeypatch.setattr(room, "available_bytes", lambda: 4096)
    with pytest.raises(SourceError, match=r"exact tracking of 256 pages needs .* are available"):
        OBSERVE[observe](block)


def test_rings_count(monkeypatch):
    block = buffer_block(mmap.mmap(-1, 1 << 20))
    monkeypatch.setattr(room, "available_bytes", lambda: 1 << 20)
    with pytest.raises(SourceError, match="exact tracking of 256 pages needs"):
        DirtyRing([block], dict.fromkeys(range(10), 1), capacity=65536)


def test_an_absurd_file_is_one_line(tmp_path, capsys):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        try:
            os.ftruncate(file.fileno(), 1 << 43)
        except OSError:
            pytest.skip("this file system has no files of 8 TiB")
    with pytest.raises(SourceError, match="exact tracking of 2147483648 pages needs 128 GiB"):
        FullComparison([file_block(str(path))])
    assert main(["sample", "--file", str(path), "--mode", "dirty-bitmap", "--calc-time=50ms"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        ("0::/", {"memory.max": "1000", "memory.current": "400"}, 600),
        ("0::/", {"memory.max": "max", "memory.current": "400"}, None),
        ("0::/a/b", {"a/memory.max": "1000", "a/memory.current": "999"}, 1),
        (
            "0::/a/b",
            {
                "a/memory.max": "900",
                "a/memory.current": "1",
                "a/b/memory.max": "500",
                "a/b/memory.current": "700",
            },
            0,
        ),
        (
            "0::/a",
            {
                "a/memory.max": "1000",
                "a/memory.current": "900",
                "a/memory.stat": "anon 1\ninactive_file 300\n",
            },
            400,
        ),
        (
            "4:memory:/x:y\n0::/",
            {"memory/x:y/memory.limit_in_bytes": "800", "memory/x:y/memory.usage_in_bytes": "300"},
            500,
        ),
        (
            "4:memory:/not/seen/here",
            {"memory/memory.limit_in_bytes": "800", "memory/memory.usage_in_bytes": "300"},
            500,
        ),
    ],
)
def test_limits_of_cgroups_count(cgroup, files, left, monkeypatch):
    named = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    named |= {"/proc/self/cgroup": cgroup, "/proc/meminfo": "MemAvailable: 1024 kB\n"}

    def read(path):
        return named.get(path.replace("//", "/"), "")

    monkeypatch.setattr(machine, "text_of", read)
    assert machine.available_bytes() == (1 << 20 if left is None else left)
