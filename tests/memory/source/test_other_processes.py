"""What other processes say of themselves is data: QEMUs by name only, other VMMs, odd texts."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from subject import LENGTH, subject, without_preloads

from pysampler.errors import SourceError
from pysampler.memory.source import find_blocks, find_ram
from pysampler.tracking.dirty_ring import vcpu_threads

BUSY = """
import ctypes, mmap, os, sys
private = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE)
private[:] = b"p" * len(private)
sys.stdout.write("ready\\n"); sys.stdout.flush()
sys.stdin.read()
"""


@contextmanager
def python(*words, called, executable=sys.executable, code=BUSY):
    """A Python with memory like a guest's and a command line like a QEMU's."""
    process = subprocess.Popen(
        [called, "-c", code, *words],
        executable=executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Its home is else sought beside argv[0].
        env={**without_preloads(), "PYTHONHOME": sys.base_prefix},
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


NESTED = "[" * 100_000
COMMANDS = [
    ["-object", f'{{"qom-type": "memory-backend-ram", "id": "m", "size": {NESTED}'],
    ["-object", f'{{"qom-type": "memory-backend-ram", "id": "m", "size": {"9" * 5000}}}'],
    [
        "-object",
        json.dumps({"qom-type": "memory-backend-ram", "id": "\udcff\x1b[2J", "size": 1e300}),
    ],
    ["-object", '{"qom-type": 5, "id": [], "size": {}}'],
    ["-object", f"memory-backend-ram,id=m,size={'9' * 5000}"],
    ["-object", f"memory-backend-file,id={'x' * 100_000},size=32M,mem-path=/dev/shm"],
    [b"-object", b"memory-backend-ram,id=\xff\xed\xa0\x80,size=32M", b"-m", b"\xff"],
    ["-m", "9" * 5000],
    ["-m", "1e400", "-m", "nan", "-m", "-5", "-m", ".5.", "-m", "0x" + "f" * 5000],
    ["-m", "٣٢"],
    ["-device", '{"driver": "VGA", "vgamem_mb": ' + "9" * 5000 + "}"],
    ["-readconfig", "/dev/zero"],
    ["-readconfig", "/proc/self/mem", "-readconfig", "\x01" * 5000, "-readconfig", "/"],
    ["-object"],
    ["-m"],
    ["", "-", "--", "-M", "=,=,,=", "-numa", ",,,"],
]


@pytest.fixture(scope="module")
def look_alike(tmp_path_factory):
    """A Python whose executable is named as QEMU's."""
    program = tmp_path_factory.mktemp("bin") / "qemu-system-x86_64"
    shutil.copy(os.path.realpath(sys.executable), program)
    return str(program)


@pytest.mark.parametrize("words", COMMANDS, ids=range(len(COMMANDS)))
def test_no_command_line_of_a_qemu_is_an_error_of_ours(look_alike, words):
    with python(*words, called="qemu-system-x86_64", executable=look_alike) as pid:
        found = find_ram(pid)
        assert LENGTH in {block.used_length for block in found.blocks}
        assert all(b.idstr.isprintable() and len(b.idstr) < 300 for b in found.blocks)
        assert all(line.isprintable() for line in found.remarks)


def test_a_process_that_only_calls_itself_qemu_is_any_other():
    with python("-m", "128M", called="/usr/bin/qemu-system-x86_64") as pid:
        found = find_ram(pid)
        assert [block.used_length for block in found.blocks] == [LENGTH]
        assert found.blocks[0].idstr.startswith("anon@")
        assert found.remarks == []


def test_an_empty_command_line_is_no_error():
    setup = """
private = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)
"""
    with subject(setup) as process:
        # PR_SET_MM_ARG_START and _END: what a process shows is what it likes.
        process("p = ctypes.CDLL(None).prctl; a = ctypes.c_ulong(address_of(private))")
        process("z = ctypes.c_ulong(0); p(35, 8, a, z, z); p(35, 9, a, z, z)")
        assert len(find_blocks(process.pid)) == 1


@pytest.mark.parametrize("kind", ["memfd", "file"])
@pytest.mark.parametrize("closed", [False, True])
def test_private_mappings_of_memfds_and_files_are_guest_ram(tmp_path, kind, closed):
    """Cloud Hypervisor's private memfds; Firecracker's snapshots."""
    opened = (
        "os.memfd_create('ch_ram')" if kind == "memfd" else f"os.open({str(tmp_path / 's')!r}, 66)"
    )
    with subject(f"fd = {opened}; os.ftruncate(fd, LENGTH)") as process:
        process("m = mmap.mmap(fd, LENGTH, flags=mmap.MAP_PRIVATE); m[:5] = b'hello'")
        if closed:
            process("os.close(fd)")
        address = int(process("answer = address_of(m)"))
        (block,) = find_blocks(process.pid)
        assert (block.idstr, block.used_length) == ("ch_ram" if kind == "memfd" else "s", LENGTH)
        memory = getattr(block.memory, "user", None) or block.memory
        assert memory.address == address


def test_the_data_of_a_program_is_no_guest_ram(tmp_path):
    setup = f"""
f = open({str(tmp_path / "lib.so")!r}, "w+b")
f.truncate(2 * LENGTH)
text = mmap.mmap(f.fileno(), LENGTH, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
data = mmap.mmap(f.fileno(), LENGTH, flags=mmap.MAP_PRIVATE, offset=LENGTH)
"""
    with subject(setup) as process, pytest.raises(SourceError, match="data of a program; "):
        find_blocks(process.pid)


def test_an_error_says_what_was_seen_and_why_it_was_not_taken(tmp_path):
    name = tmp_path / "ram\r\x1b[2J"
    setup = f"""
f = open({str(name)!r}, "w+b")
f.truncate(LENGTH)
m = mmap.mmap(f.fileno(), LENGTH, prot=mmap.PROT_READ)
"""
    with subject(setup) as process, pytest.raises(SourceError) as raised:
        find_blocks(process.pid)
    assert "(32 MiB) is not writable" in str(raised.value)
    assert str(raised.value).isprintable()
    assert "name one with --block" in str(raised.value)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["CPU 0/KVM", "CPU 1/TCG"], {0, 1}),
        (["CPU 9999999999/", "CPU 4294967296/", "CPU 10000/K", "CPU 7/KVM"], {7}),
        (["CPU 9999999999/"], None),
        ([b"CPU \xff/KVM", "CPU \N{ARABIC-INDIC DIGIT THREE}/"], None),
        (["CPU -1/KVM", "CPU 1", " CPU 1/", "CPU 0x1/"], None),
    ],
)
def test_vcpus_are_threads_of_possible_numbers(names, numbers):
    names = [os.fsencode(name) for name in names]
    code = f"""
import sys, threading
names = {names!r}
stop = threading.Event()
def run(name, named):
    open("/proc/thread-self/comm", "wb").write(name)
    named.set()
    stop.wait()
for name in names:
    named = threading.Event()
    threading.Thread(target=run, args=(name, named), daemon=True).start()
    named.wait()
print("ready", flush=True)
sys.stdin.read()
"""
    with python(called="python", code=code) as pid:
        if numbers is None:
            with pytest.raises(SourceError, match="no thread named as a vCPU"):
                vcpu_threads(pid)
        else:
            assert set(vcpu_threads(pid)) == numbers


def test_the_command_line_tells_such_names_escaped(tmp_path):
    path = tmp_path / "\x1b[2J\udcff"
    code = BUSY.replace(
        "private = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE)",
        f"""
f = open({os.fsencode(path)!r}, "w+b"); f.truncate(32 << 20)
private = mmap.mmap(f.fileno(), 32 << 20)""",
    )
    with python(called="x", code=code) as pid:
        command = [sys.executable, "-m", "pysampler", "blocks", "--pid", str(pid)]
        for more in ([], ["--json"]):
            done = subprocess.run([*command, *more], capture_output=True, check=True)
            assert b"\x1b" not in done.stdout + done.stderr
            done.stdout.decode()
    (row,) = json.loads(done.stdout)["blocks"]
    assert row["idstr"] == r"\x1b[2J\udcff"
    json.dumps(row, ensure_ascii=False).encode()
    assert Path(path).exists()
