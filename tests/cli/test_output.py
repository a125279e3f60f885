"""Where `sample` puts its vector: files, devices, FIFOs, and what goes wrong with them."""

import os
import subprocess
import sys
import threading
import time

import pytest
from subject import LENGTH

from pysampler import Measurement, Status

# Long enough that a refusal can only have come before the measurement.
LONG = ["--calc-time", "60s"]
SHORT = ["--calc-time", "50ms"]


@pytest.fixture
def sample(tmp_path):
    ram = tmp_path / "ram"
    ram.write_bytes(bytes(LENGTH))

    def run(*arguments, code=None, stdout=subprocess.PIPE):
        start = ["-m", "pysampler"] if code is None else ["-c", code]
        return subprocess.run(
            [sys.executable, *start, "sample", "--file", ram, "--quiet", *arguments],
            stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=30, check=False, cwd=tmp_path,
        )  # fmt: skip

    return run


def test_a_vector_that_cannot_be_written_is_printed(sample):
    done = sample(*SHORT, "-o", "/dev/full")
    assert done.returncode == 1
    assert Measurement.from_json(done.stdout).status is Status.MEASURED
    assert done.stderr == (
        "pysampler sample: cannot write /dev/full: No space left on device;"
        " so it is on standard output\n"
    )


def test_a_file_that_cannot_be_replaced_after_all_is_printed_too(sample, tmp_path):
    code = (
        "import os, sys\n"
        "def replace(*_): raise OSError(16, 'Device or resource busy')\n"
        "os.replace = replace\n"
        "from pysampler.cli import main; sys.exit(main())"
    )
    done = sample(*SHORT, "-o", "vector.json", code=code)
    assert done.returncode == 1
    Measurement.from_json(done.stdout)
    assert "cannot write vector.json: Device or resource busy" in done.stderr
    assert os.listdir(tmp_path) == ["ram"]


def test_a_fifo_that_nobody_reads_is_refused_before_the_measurement(sample, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    done = sample(*LONG, "-o", "fifo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pysampler sample: cannot write fifo: nobody reads this FIFO\n"


def test_a_fifo_that_is_read_gets_the_vector(sample, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    fd = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        done = sample(*SHORT, "-o", "fifo")
        text = os.read(fd, 1 << 20)
    finally:
        os.close(fd)
    assert (done.returncode, done.stdout) == (0, "")
    Measurement.from_json(text)


def test_a_fifo_whose_reader_went_away_does_not_lose_the_vector(sample, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    fd = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    code = (
        "import os, sys, time; from pysampler.cli import main, output\n"
        "write = output.Output.write\n"
        "def late(self, text): time.sleep(1); write(self, text)\n"
        "output.Output.write = late; open('begun', 'w').close(); sys.exit(main())"
    )

    def leave():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        time.sleep(0.9)
        os.close(fd)

    reader = threading.Thread(target=leave)
    reader.start()
    done = sample(*SHORT, "-o", "fifo", code=code)
    reader.join()
    assert done.returncode == 1
    Measurement.from_json(done.stdout)
    assert "cannot write fifo: Broken pipe; so it is on standard output" in done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_standard_stream_by_its_name_works_on_a_pipe(sample, stream):
    done = sample(*SHORT, "-o", f"/dev/{stream}")
    assert done.returncode == 0
    Measurement.from_json(getattr(done, stream))


def test_standard_output_by_its_name_is_appended_to(sample, tmp_path):
    # Replaced, the file would lose what others wrote to it.
    with open(tmp_path / "log", "a") as log:
        log.write("before\n")
        log.flush()
        sample(*SHORT, "-o", "/dev/stdout", stdout=log)
    assert (tmp_path / "log").read_text().startswith("before\n{")


def test_an_empty_name_is_wrong_usage(sample):
    done = sample(*LONG, "-o", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pysampler sample: --output: the name of the file is empty\n"


def test_the_longest_name_works_and_a_longer_one_is_known_before(sample, tmp_path):
    name = "v" * 255
    assert sample(*SHORT, "-o", name).returncode == 0
    Measurement.from_json((tmp_path / name).read_text())
    assert sorted(os.listdir(tmp_path)) == ["ram", name]
    done = sample(*LONG, "-o", name + "v")
    assert done.returncode == 1
    assert done.stderr.endswith(": File name too long\n")
