"""In the locale C everything that is shown is ASCII."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from subject import LENGTH

VECTOR = Path(__file__).parents[1] / "golden" / "vector-32gib-memcached.json"
PYSAMPLER = [sys.executable, "-m", "pysampler"]


def on_a_terminal(words, **environment):
    """Run pysampler with stderr and stdout on a terminal; return what it showed."""
    master, slave = pty.openpty()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    kept.update({k: v for k, v in os.environ.items() if k in ("PYTHONPATH", "PYTHONSAFEPATH")})
    with subprocess.Popen(
        [*PYSAMPLER, *map(str, words)], stdin=slave, stdout=slave, stderr=slave,
        env={**kept, "TERM": "xterm", **environment},
    ) as process:  # fmt: skip
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # EIO: the other end is closed
                break
            if not part:
                break
            shown += part
        code = process.wait(60)
    os.close(master)
    return code, shown


@pytest.fixture
def ram(tmp_path):
    path = tmp_path / "räm"
    path.write_bytes(bytes(LENGTH))
    return path


COMMANDS = {
    "sample": lambda ram: ["sample", "--file", ram, "--calc-time", "1500ms"],
    "blocks": lambda ram: ["blocks", "--file", ram],
    "predict": lambda _: ["predict", VECTOR, "--bandwidth", "1Gbps", "--downtime", "1s"],
    "a refusal": lambda ram: ["sample", "--file", f"{ram}-is-not-there"],
}
LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "POSIX"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"},
]


@pytest.mark.parametrize(
    ("verb", "locale"),
    [(verb, LOCALES[0]) for verb in COMMANDS] + [("sample", locale) for locale in LOCALES[1:]],
    ids=str,
)
def test_the_locale_c_shows_nothing_but_ascii(ram, verb, locale):
    code, shown = on_a_terminal(COMMANDS[verb](ram), **locale)
    assert (code == 0) == (verb != "a refusal"), shown
    shown.decode("ascii")
    assert b"Traceback" not in shown


@pytest.mark.parametrize("locale", [{"LC_ALL": "C.UTF-8"}, {"LC_ALL": "C", "PYTHONUTF8": "1"}])
def test_a_locale_that_has_more_shows_bars(ram, locale):
    _, shown = on_a_terminal(COMMANDS["sample"](ram), **locale)
    assert "▁" in shown.decode("utf-8")


def test_a_name_that_is_not_ascii_is_escaped_and_the_vector_stays_json(ram):
    environment = {**os.environ, "LC_ALL": "C"}
    words = ["sample", "--file", str(ram), "--calc-time", "50ms"]
    done = subprocess.run([*PYSAMPLER, *words], capture_output=True, env=environment, check=True)
    vector = json.loads(done.stdout.decode("ascii"))
    assert vector["x-pysampler"]["blocks"][0]["idstr"].endswith("m")
