"""What README and docs/ show is true: each fenced block of sh, console and python is run.

The blocks of one file run in one folder, in order, each in a shell or interpreter of its own;
what a block leaves running in the background is there for the next ones, and ended at last. Shell
blocks find $PID, a process with guest RAM; $FD, a memfd in it; and $ADDRESS, where it has 64 MiB
mapped. /dev/shm/guest.ram becomes a file that exists, and tests/ is the project's. Three commands
are replaced: `pysampler sample` measures for 250 ms, `make` only looks whether it knows the target,
and `pip` whether this project has the extras.

The lines that a console block shows below its command are the first ones that the command prints on
stdout. Figures may differ by 3 %, as versions of scipy differ.
"""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from subject import subject

from pysampler import Measurement, buffer_block, measure

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TROUBLESHOOTING = ROOT / "docs" / "troubleshooting.md"
TIMEOUT_S = 120

# Programs a machine may lack; .ci/run installs them.
OPTIONAL = ("qemu-system-x86_64", "socat")

_FIGURE = re.compile(r"\d+(?:\.\d+)?")
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

GUEST = """
size = 64 << 20
fd = os.memfd_create("memory-backend-memfd")
os.ftruncate(fd, size)
memory = mmap.mmap(fd, size)
memory[: size // 2] = b"r" * (size // 2)
"""

REPLACED = {
    "pysampler": """
        [ "$1" = sample ] && set -- "$@" --calc-time 250ms
        exec "$PYTHON" -m pysampler "$@"
    """,
    "make": """
        exec "$MAKE" --directory "$ROOT" --dry-run "$@" >/dev/null
    """,
    "pip": """
        exec "$PYTHON" - "$@" <<-'END'
        import importlib.metadata, re, sys
        command, *requirements = sys.argv[1:]
        assert command == "install", command
        known = set(importlib.metadata.metadata("pysampler").get_all("Provides-Extra"))
        for requirement in requirements:
            extras = re.fullmatch(r"(?:-e|[.](?:\\[(.*)\\])?)", requirement)
            assert extras, requirement
            assert set((extras[1] or "").split(",")) <= known | {""}, requirement
        END
    """,
}


def blocks(page, *languages):
    return [
        (language, text)
        for language, text in _FENCE.findall(page.read_text())
        if language in languages
    ]


def shell_script(language, text):
    if language == "console":  # commands after "$ ", and what they print
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    return "set -euo pipefail\n" + text.replace("/dev/shm/guest.ram", "guest.ram")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Yield the variables of the shell blocks, while the process they name is running."""
    folder = tmp_path_factory.mktemp("bin")
    make = subprocess.run(["which", "make"], capture_output=True, text=True, check=True).stdout
    for name, script in REPLACED.items():
        path = folder / name
        path.write_text("#!/bin/sh\n" + re.sub(r"^ {8}", "", script, flags=re.MULTILINE))
        path.chmod(0o755)
    with subject(GUEST) as guest:
        yield {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "MAKE": make.strip(),
            "ROOT": str(ROOT),
            "PID": str(guest.pid),
            "FD": guest("answer = fd"),
            "ADDRESS": guest("answer = address_of(memory)"),
        }


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Return a function that gives each page the folder its blocks run in."""
    folders = {}

    def folder(page):
        if page not in folders:
            folders[page] = tmp_path_factory.mktemp(page.stem)
            (folders[page] / "guest.ram").write_bytes(b"f" * (32 << 20))
            (folders[page] / "tests").symlink_to(ROOT / "tests")
        return folders[page]

    return folder


def is_group(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def left_running():
    """The process groups of blocks that are still there; all are ended after the last block."""
    groups = []
    yield groups
    for group in filter(is_group, groups):
        os.killpg(group, signal.SIGKILL)


def title(block):
    page, (_, text) = block
    return f"{page.stem}: {text.splitlines()[0][:60]}"


@pytest.mark.parametrize(
    "block",
    [(page, block) for page in PAGES for block in blocks(page, "sh", "console", "python")],
    ids=title,
)
def test_a_block_runs(block, environment, folder_of, left_running):
    page, (language, text) = block
    for program in OPTIONAL:
        if program in text and shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    if language == "python":
        command = [sys.executable, "-W", "error", "-c", text]
    else:
        command = ["bash", "-c", shell_script(language, text)]
    with tempfile.TemporaryFile("w+") as output:  # a pipe would wait for those in the background
        process = subprocess.Popen(
            command,
            cwd=folder_of(page),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        left_running.append(process.pid)
        exit_code = process.wait(TIMEOUT_S)
        if not is_group(process.pid):
            left_running.remove(process.pid)
        output.seek(0)
        printed = output.read()
    assert exit_code == 0, printed
    if language == "console":
        assert_is_printed(shown_output(text), printed)


def shown_output(text):
    return [line for line in text.splitlines() if not line.startswith("$ ")]


def assert_is_printed(shown, printed):
    lines = [line for line in printed.splitlines() if not line.startswith("pysampler ")]  # stderr
    for line, expected in zip(lines[: len(shown)], shown, strict=True):
        assert _FIGURE.sub("N", line).split() == _FIGURE.sub("N", expected).split()
        figures = [[float(figure) for figure in _FIGURE.findall(one)] for one in (line, expected)]
        assert figures[0] == pytest.approx(figures[1], rel=0.03, abs=1)


@pytest.mark.parametrize(
    "text", [text for page in PAGES for _, text in blocks(page, "json")], ids=lambda text: text[:20]
)
def test_a_block_of_json_is_json(text):
    json.loads(text)


def test_a_page_explains_every_key_of_the_vector():
    text = (ROOT / "docs" / "vector.md").read_text()
    block = buffer_block(bytearray(8 << 20), "ram")
    for profile in ("qemu", "fast"):
        with measure([block], calc_time="50ms", sample_pages=4096, profile=profile) as sampler:
            (measurement,) = sampler
        vector = Measurement.to_dict(measurement)
        details = vector["x-pysampler"]
        keys = {*vector, *details, *details["baseline"], *details["blocks"][0]}
        assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def literals_of(path):
    """Return the string literals of a module; those of an f-string are the text between values."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def test_the_messages_of_troubleshooting_are_those_of_the_code():
    literals = [text for path in (ROOT / "pysampler").rglob("*.py") for text in literals_of(path)]
    rows = re.findall(r"^\| (`.*?`) \| .*\| .* \|$", TROUBLESHOOTING.read_text(), re.MULTILINE)
    messages = [message for row in rows for message in re.findall("`(.+?)`", row)]
    assert len(messages) > 40
    parts = [part.strip() for one in messages for part in re.split(r"\.\.\.|[:;] ", one)]
    long = [part for part in parts if len(part) > 8]
    assert [part for part in long if not any(part in text for text in literals)] == []
