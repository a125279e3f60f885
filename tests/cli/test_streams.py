"""What a user sees when a stream is closed or full, and of names that are made to harm."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from subject import LENGTH

from pysampler import Measurement

VECTOR = Path(__file__).parents[1] / "golden" / "vector-32gib-memcached.json"
PYSAMPLER = [sys.executable, "-m", "pysampler"]


@pytest.fixture
def ram(tmp_path):
    path = tmp_path / "ram"
    path.write_bytes(bytes(LENGTH))
    return path


def shell(redirection, *arguments, **options):
    """Run pysampler with a redirection of the shell's."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *PYSAMPLER, *map(str, arguments)],
        capture_output=True, text=True, timeout=60, check=False, **options,
    )  # fmt: skip


def test_without_a_stderr_the_warnings_are_not_among_the_data(ram):
    done = shell("2>&-", "sample", "--file", ram, "--calc-time", "50ms", "--sample-pages", 128)
    assert done.returncode == 0
    json.loads(done.stdout)
    assert done.stdout.endswith("}\n")


def test_a_full_stderr_is_no_failure(ram):
    done = shell("2>/dev/full", "sample", "--file", ram, "--calc-time", "50ms")
    assert done.returncode == 0
    json.loads(done.stdout)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_what_is_said_of_a_prediction_cannot_harm_it(redirection):
    done = shell(redirection, "predict", VECTOR, "--json", "--downtime", "1s")
    assert done.returncode == 0
    assert json.loads(done.stdout)["model"] == "qemu"


@pytest.mark.parametrize("words", [["predict"], ["advise"], ["advise", "--quick"]])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_pipe_that_nobody_reads_ends_a_prediction_without_a_word(words, more):
    read, write = os.pipe()
    os.close(read)
    quick = ["--bandwidth", "10Gbps", "--downtime", "125ms"]
    done = subprocess.run(
        [*PYSAMPLER, *words, VECTOR, *quick, *more], stdout=write, stderr=subprocess.PIPE,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "curve: " not in line] == []


VERBS = [
    ["sample", "--file", "{ram}", "--calc-time", "60s"],
    ["blocks", "--file", "{ram}"],
    ["doctor"],
    ["predict", "{vector}"],
    ["advise", "{vector}", "--bandwidth", "1Gbps", "--downtime", "300ms"],
    ["guest"],
    ["bench"],
    ["validate"],
    ["completion", "bash"],
]


@pytest.mark.parametrize("arguments", VERBS, ids=lambda words: words[0])
def test_without_a_stdout_nothing_is_begun(ram, arguments):
    done = shell(">&-", *(word.format(ram=ram, vector=ram) for word in arguments))
    assert done.returncode == 1
    assert done.stderr == f"pysampler {arguments[0]}: standard output is closed\n"


@pytest.mark.parametrize("arguments", [["blocks"], ["blocks", "--json"]])
def test_a_full_stdout_is_one_line(ram, arguments):
    done = shell(">/dev/full", *arguments, "--file", ram)
    assert done.returncode == 1
    assert done.stderr == (
        "pysampler blocks: cannot write standard output: No space left on device\n"
    )


def test_a_vector_can_go_to_a_file_without_any_standard_stream(ram, tmp_path):
    out = tmp_path / "vector.json"
    done = shell("<&- >&- 2>&-", "sample", "--file", ram, "--calc-time", "50ms", "-o", out)
    assert done.returncode == 0
    Measurement.from_json(out.read_text())
    assert ram.read_bytes() == bytes(LENGTH)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("argparse", []), ("argparse", ["sample"]), ("numpy", ["sample"]), ("rich", ["blocks"])],
)
def test_ctrl_c_while_modules_are_imported_is_one_line(tmp_path, module, arguments):
    (tmp_path / f"{module}.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    )
    done = subprocess.run(
        [*PYSAMPLER, *arguments], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "pysampler: interrupted\n")


NAMES = {
    "markup": ("[red]ram:smile:", "[red]ram:smile:"),
    "escape": ("a\x1b[31m\nb", "a\\x1b[31m\\nb"),
    "no UTF-8": ("a\udcffb", "a\\udcffb"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_any_name_is_shown_as_it_is_in_one_line(tmp_path, kind):
    name, shown = NAMES[kind]
    folder = tmp_path / "d[" / "x]"
    folder.mkdir(parents=True)
    path = folder / name
    path.write_bytes(bytes(LENGTH))
    done = shell("", "blocks", "--file", path)
    assert (done.returncode, done.stderr) == (0, "")
    _, line = done.stdout.splitlines()
    assert f"{folder}/{shown} at 0" in line
    empty = path.with_name(name + "0")
    empty.write_bytes(b"")
    done = shell("", "sample", "--file", empty)
    assert done.stderr == f"pysampler sample: {folder}/{shown}0: is empty\n"


def test_a_name_that_is_no_utf_8_is_escaped_in_json(tmp_path):
    path = tmp_path / "a\udcffb"
    path.write_bytes(bytes(LENGTH))
    done = shell("", "sample", "--file", path, "--calc-time", "50ms", "--quiet")
    (block,) = json.loads(done.stdout)["x-pysampler"]["blocks"]
    assert block["idstr"] == "a\\udcffb"
    (block,) = json.loads(shell("", "blocks", "--json", "--file", path).stdout)["blocks"]
    json.dumps(block, ensure_ascii=False).encode()  # no lone surrogates


def test_an_encoding_without_the_letter_is_no_failure(tmp_path):
    path = tmp_path / "räm"
    path.write_bytes(bytes(LENGTH))
    done = shell("", "blocks", "--file", path, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "r\\xe4m" in done.stdout


def test_no_thread_is_started_that_nobody_needs():
    code = (
        "import atexit, os, sys; from pysampler.__main__ import main\n"
        "atexit.register(lambda: print(len(os.listdir('/proc/self/task')), file=sys.stderr))\n"
        "sys.exit(main())"
    )
    environment = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", VECTOR, "--json"],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.endswith("\n1\n")
