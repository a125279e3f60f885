"""An error that nobody foresaw is one line, and --debug has the rest."""

import sqlite3
import struct
import subprocess
import sys

import pytest
from subject import LENGTH

from pysampler.cli import blocks, main

UNFORESEEN = [
    ValueError("too long\nfor one line"),
    OverflowError("int too big to convert"),
    RecursionError("maximum recursion depth exceeded"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ZeroDivisionError("division by zero"),
    KeyError("vector"),
    AssertionError(),
    sqlite3.OperationalError("disk I/O error"),
    struct.error("unpack requires a buffer"),
    TypeError("x" * 100_000),
]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_whatever_a_verb_raises_is_one_line(monkeypatch, capsys, error):
    def run(_):
        raise error

    monkeypatch.setattr(blocks, "run", run)
    assert main(["blocks", "--pid", "1"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"pysampler blocks: internal error: {type(error).__name__}: ")
    assert message.endswith("; --debug shows where\n")
    assert message.count("\n") == 1
    assert len(message) < 1000


def test_debug_shows_where_it_was(monkeypatch, capsys):
    def somewhere(_):
        raise ValueError("of nobody")

    monkeypatch.setattr(blocks, "run", somewhere)
    assert main(["blocks", "--debug", "--pid", "1"]) == 1
    assert "in somewhere" in capsys.readouterr().err


def test_a_broken_installation_is_one_line():
    program = (
        "import sys; sys.modules['rich.table'] = None; sys.argv = ['pysampler', 'blocks', '--pid', '1'];"
        "from pysampler.__main__ import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("pysampler: ModuleNotFoundError: ")
    assert done.stderr.count("\n") == 1


VERBS = {
    "sample": ["sample", "--file", "{ram}", "--calc-time", "50ms"],
    "blocks": ["blocks", "--file", "{ram}"],
    "predict": ["predict", "{ram}"],
    "advise": ["advise", "{ram}", "--bandwidth", "1Gbps", "--downtime", "1s"],
    "guest": ["guest", "--memory", "2M", "--qmp", "unix:{ram}.sock"],
    "validate": ["validate", "--sizes", "64M", "--calc-times", "50ms", "--store", "{ram}.sqlite"],
}


@pytest.mark.parametrize("limit", [3, 5])
@pytest.mark.parametrize("verb", VERBS)
def test_without_descriptors_there_is_a_line_and_an_end(tmp_path, verb, limit):
    """Whichever open is the one that fails, a line or two say so, and nobody waits."""
    (tmp_path / "ram").write_bytes(bytes(LENGTH))
    words = [word.replace("{ram}", str(tmp_path / "ram")) for word in VERBS[verb]]
    # The limit is lowered when all that is imported is, as it would be by a leak.
    program = (
        f"import resource, sys, pysampler.__main__, pysampler.cli.{verb}\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        "sys.argv[0] = 'pysampler'\n"
        "sys.exit(pysampler.__main__.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    if done.returncode == 0:
        assert (verb, limit) in {("sample", 5), ("blocks", 5)}  # enough for them
        return
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert 1 <= done.stderr.count("\n") <= 3
    if limit == 3:
        assert "ulimit -n" in done.stderr
