"""`pysampler sample` as users run it: real processes, real faults."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from subject import LENGTH, subject

from pysampler import Measurement, Status

PRIVATE = "memory = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)\nmemory[:] = b'p' * LENGTH"
MEMFD = """
fd = os.memfd_create("memory-backend-memfd")
os.ftruncate(fd, LENGTH)
memory = mmap.mmap(fd, LENGTH)
memory[:] = b"s" * LENGTH
"""


def pysampler(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "pysampler", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


def started(*arguments):
    """A `pysampler sample` in progress, its second period measured."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pysampler", "sample", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # It has begun when it holds the memory open; then 1.5 s give seven periods.
    deadline = time.monotonic() + 30
    while not any("memfd" in name or "pagemap" in name for name in open_files(process.pid)):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1.5)
    return process


def open_files(pid):
    names = []
    for fd in os.scandir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            names.append(os.readlink(fd))
    return names


def ended(process):
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("setup", [PRIVATE, MEMFD], ids=["private", "memfd"])
def test_a_process_is_sampled_and_the_vector_is_all_of_stdout(setup):
    with subject(setup) as process:
        done = pysampler("sample", "--pid", process.pid, "--calc-time", "500ms", "--seed", 1)
    vector = Measurement.from_json(done.stdout)
    assert done.returncode == 0
    assert vector.status is Status.MEASURED
    assert vector.n_total_pages == LENGTH // 4096
    assert vector.details["seed"] == 1
    assert list(json.loads(done.stdout)) == [
        "page-size", "periods", "status", "sample-pages", "dirty-rate", "mode", "n-dirty-pages",
        "n-sampled-pages", "n-zero-pages", "n-total-pages", "start-time", "calc-time",
        "calc-time-unit", "x-pysampler",
    ]  # fmt: skip


def test_quiet_says_nothing_on_stderr(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(bytes(LENGTH))
    done = pysampler("sample", "--file", path, "--calc-time", "50ms", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_output_goes_to_a_file_whole(tmp_path):
    ram, out = tmp_path / "ram", tmp_path / "vector.json"
    ram.write_bytes(bytes(LENGTH))
    out.write_text("old")
    out.chmod(0o640)
    done = pysampler("sample", "--file", ram, "--calc-time", "50ms", "-o", out)
    assert (done.returncode, done.stdout) == (0, "")
    assert Measurement.from_json(out.read_text()).status is Status.MEASURED
    assert out.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["ram", "vector.json"]


FAULTS = {
    "exits": (PRIVATE, "os._exit(0)", "the process has ended"),
    "unmaps": (PRIVATE, "memory.close()", "the process has unmapped it"),
    "shrinks": (PRIVATE, "memory.resize(LENGTH // 2)", "the process has unmapped it"),
    "exits (memfd)": (MEMFD, "os._exit(0)", "the process has ended"),
    "executes (memfd)": (
        MEMFD,
        "os.close(1); os.execlp('sleep', 'sleep', '60')",
        "the process has ended",
    ),
    "unmaps (memfd)": (MEMFD, "memory.close()", "the process has unmapped it"),
    "truncates": (MEMFD, "os.ftruncate(fd, LENGTH // 2)", "was truncated: 16 MiB"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_periods_before_a_fault_are_kept(fault):
    setup, action, message = FAULTS[fault]
    with subject(setup) as process:
        sampling = started("--pid", process.pid, "--sample-pages", 16384)
        process(action)
        code, out, err = ended(sampling)
    vector = Measurement.from_json(out)
    assert code == 3
    assert vector.status is Status.MEASURING
    assert vector.periods[0] >= 125
    assert message in err
    assert f"; {len(vector.periods)} of 22 periods were measured" in err
    assert "Traceback" not in err


def test_a_truncation_in_the_midst_of_passes_is_no_sigbus():
    with subject(MEMFD) as process:
        sampling = started("--pid", process.pid, "--sample-pages", 16384, "--threads", 2)
        for _ in range(20):
            process("os.ftruncate(fd, 4096)")
            process("os.ftruncate(fd, LENGTH)")
        process("os.ftruncate(fd, 4096)")  # if none of those was noticed, this one is
        code, out, _ = ended(sampling)
    assert code == 3
    assert Measurement.from_json(out).status is Status.MEASURING


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_file", [False, True])
def test_an_interrupt_keeps_what_was_measured(number, to_file, tmp_path):
    out = tmp_path / "vector.json"
    with subject(PRIVATE) as process:
        sampling = started("--pid", process.pid, *(["-o", out] if to_file else []))
        sampling.send_signal(number)
        code, text, err = ended(sampling)
    vector = Measurement.from_json(out.read_text() if to_file else text)
    assert (code, vector.status) == (3, Status.MEASURING)
    assert len(vector.periods) >= 4
    assert err.startswith("pysampler sample: interrupted; ")


USAGE_ERRORS = [
    (["sample"], "name what to sample: --pid PID or --file PATH"),
    (["sample", "--pid", "x"], "pid must be a whole number (got 'x')"),
    (["sample", "--pid", "0"], "pid must be between 1 and 4194304 (got 0)"),
    (["sample", "--pid", "-1"], "pid must be a whole number (got '-1')"),
    (["sample", "--pid", "1", "--file", "x"], "give either --pid or --file"),
    (["sample", "--fd", "1"], "--fd and --block need --pid"),
    (["sample", "--pid", "1", "--fd", "1", "--block", "a=0:1M"], "give either --fd or --block"),
    (["sample", "--file", "x", "--sample-pages", "127"], "between 128 and 16384 (got 127)"),
    (["sample", "--file", "x", "--sample-pages", "many"], "sample-pages must be a whole number"),
    (["sample", "--file", "x", "--calc-time", "49ms"], "calc-time must be between 50 ms and 4 h"),
    (["sample", "--file", "x", "--calc-time", "5h"], "calc-time must be between 50 ms and 4 h"),
    (["sample", "--file", "x", "--calc-time", "nan"], "calc-time: 'nan' is not a duration"),
    (["sample", "--file", "x", "--threads", "0"], "threads must be between 1 and"),
    (["sample", "--file", "x", "--profile", "slow"], "invalid choice: 'slow'"),
    (["nonsense"], "invalid choice: 'nonsense'"),
    ([], "the following arguments are required: COMMAND"),
]


@pytest.mark.parametrize(("arguments", "message"), USAGE_ERRORS)
def test_a_usage_error_exits_2_and_names_the_argument(arguments, message):
    done = pysampler(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["sample", "blocks"])
def test_a_missing_process_exits_1(verb):
    done = pysampler(verb, "--pid", 4194304)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pysampler {verb}: no process has the pid 4194304\n"


def test_a_file_may_be_named_in_any_way_it_is_bad(tmp_path):
    done = pysampler("sample", "--file", tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr == f"pysampler sample: {tmp_path}: is a directory, not a file of guest memory\n"
    )


@pytest.mark.parametrize(
    ("path", "reason"),
    [("missing/vector.json", "No such file or directory"), (".", "is a directory")],
)
def test_an_unwritable_output_is_known_before_the_measurement(tmp_path, path, reason):
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(LENGTH))
    begin = time.monotonic()
    done = pysampler("sample", "--file", ram, "-o", tmp_path / path)
    assert done.returncode == 1
    assert f"cannot write {tmp_path / path}: {reason}" in done.stderr
    assert time.monotonic() - begin < 30  # calc-time is 60 s


def test_a_full_disk_is_no_success(tmp_path):
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(LENGTH))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pysampler", "sample", "--file", ram, "--calc-time", "50ms"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "cannot write standard output: No space left on device" in done.stderr


def test_a_device_as_output_is_written_and_not_replaced(tmp_path):
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(LENGTH))
    before = os.stat("/dev/null")
    done = pysampler("sample", "--file", ram, "--calc-time", "50ms", "-o", "/dev/null")
    assert done.returncode == 0
    assert os.stat("/dev/null").st_rdev == before.st_rdev


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_of_another_user_names_the_cure():
    # Whoever the tests run as may own the interpreter's folder alone, so that nobody can import
    # anything any more: two calls before that load what the last one needs.
    code = (
        "import os, sys; from pysampler.cli import main;"
        "main(['sample', '--pid', '4194304']);"
        "from pysampler.host.rights import access_error; access_error(1);"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "sys.exit(main(sys.argv[1:]))"
    )
    with subject(PRIVATE) as process:
        done = subprocess.run(
            [sys.executable, "-c", code, "sample", "--pid", str(process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"\npysampler sample: process {process.pid} may not be read: it belongs to user root;"
        ' run `sudo env "PATH=$PATH" pysampler ...`, or with CAP_SYS_PTRACE and'
        " CAP_DAC_READ_SEARCH\n"
    )


def test_debug_shows_the_traceback():
    done = pysampler("sample", "--pid", 4194304, "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_blocks_lists_what_would_be_sampled_and_how():
    with subject(MEMFD) as process:
        done = pysampler("blocks", "--pid", process.pid, "--json")
        text = pysampler("blocks", "--pid", process.pid).stdout
    (block,) = json.loads(done.stdout)["blocks"]
    assert (block["idstr"], block["used-length"]) == ("memory-backend-memfd", LENGTH)
    assert (block["access"], block["why-not"], block["page-size"]) == ("mapped", None, 4096)
    assert "32 MiB" in text
    assert "mapped" in text


def test_doctor_reports_what_it_tried():
    findings = json.loads(pysampler("doctor", "--json").stdout)["findings"]
    by_name = {finding["name"]: finding for finding in findings}
    assert by_name["memfd of another process"]["works"]
    assert by_name["private memory of another process"]["works"]
    assert "GB/s" in by_name["hash XXH64"]["detail"]
    assert all(finding["works"] or finding["detail"] for finding in findings)


def test_completion_knows_every_verb_and_option():
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    text = pysampler("completion", "bash").stdout
    for word in ("sample", "blocks", "doctor", "--calc-time", "--json"):
        assert word in text
