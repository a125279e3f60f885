"""Pages that are read at once after their bits were taken, as fast as C can read them."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def reader(tmp_path):
    """A program in C: in Python a write that was still under way has long arrived."""
    compiler = shutil.which("cc")
    core = [ROOT / "csrc" / name for name in ("dirty_log.c", "vcpu.c")]
    if not compiler or not all(path.exists() for path in core):
        pytest.skip("there is no C compiler, or no source of the core")
    made = tmp_path / "reader"
    source = Path(__file__).with_name("read_beside_vcpu.c")
    command = [compiler, "-std=gnu11", "-O2", f"-I{ROOT}/csrc", source, *core, "-o", made]
    subprocess.run([*command, "-lm", "-lpthread"], check=True)
    return made


def test_what_was_written_before_a_bit_was_taken_is_seen_by_who_reads_the_page_then(reader):
    done = subprocess.run([reader], stdout=subprocess.PIPE, text=True, timeout=100, check=True)
    n_judged, n_missed = map(int, done.stdout.split())
    if not n_judged:
        pytest.skip("reader and vCPU never ran at the same time: no two cores were free")
    assert n_missed == 0
