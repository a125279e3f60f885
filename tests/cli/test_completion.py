"""Completions and the man page say what the parsers know."""

import contextlib
import io
import itertools
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from pysampler import cli
from pysampler.cli import main

pytest.importorskip("shtab", reason="the extra `completion` is not installed")
SHARE = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "share.py"))
# What checks a file of it without running it.
CHECKS = {
    "bash": ("bash", "-n"),
    "zsh": ("zsh", "-n"),
    "fish": ("fish", "--no-execute"),
    "roff": ("groff", "-man", "-Tutf8", "-ww", "-z"),
}


def help_of(verb):
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([verb, "--help"])
    return text.getvalue()


def long_options():
    # As in "  -o FILE, --output FILE"; what is said of an option is indented further.
    named = [
        re.findall(r"^  (?:-\w[^-]*, )?(--[\w-]+)", help_of(v), re.MULTILINE) for v in cli.VERBS
    ]
    assert all("--debug" in names for names in named)
    return set(itertools.chain.from_iterable(named))


def check(language, path):
    program, *options = CHECKS[language]
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    done = subprocess.run(
        [program, *options, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def completions(capsys, shell):
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_have_every_verb_and_option(capsys, shell):
    text = completions(capsys, shell)
    # fish takes a long option without its dashes.
    option_of = "-l {}" if shell == "fish" else "--{}"
    wanted = [*cli.VERBS, *(option_of.format(option[2:]) for option in long_options())]
    assert [word for word in wanted if word not in text] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_completions(capsys, tmp_path, shell):
    path = tmp_path / "completions"
    path.write_text(completions(capsys, shell))
    check(shell, path)


def test_the_man_page_has_every_verb_and_option():
    text = SHARE["man_page"]().replace("\\-", "-")
    wanted = [*(f".SS pysampler {verb}" for verb in cli.VERBS), *long_options()]
    assert [word for word in wanted if word not in text] == []


def test_the_man_page_has_no_warnings(tmp_path):
    path = tmp_path / "pysampler.1"
    path.write_text(SHARE["man_page"]())
    check("roff", path)


def test_files_lie_where_a_system_looks_for_them(tmp_path):
    SHARE["main"](str(tmp_path))
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "man/man1/pysampler.1",
        "bash-completion/completions/pysampler",
        "zsh/site-functions/_pysampler",
        "fish/vendor_completions.d/pysampler.fish",
    }
