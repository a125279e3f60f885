"""Completions and the man page say what the parsers know."""

import argparse
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


def verbs():
    (commands,) = (
        action
        for action in cli.build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return commands.choices


def long_options():
    return {
        option
        for parser in verbs().values()
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for option in action.option_strings
        if option.startswith("--")
    }


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
    wanted = [*verbs(), *(option_of.format(option[2:]) for option in long_options())]
    assert [word for word in wanted if word not in text] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_completions(capsys, tmp_path, shell):
    path = tmp_path / "completions"
    path.write_text(completions(capsys, shell))
    check(shell, path)


def test_the_man_page_has_every_verb_and_option():
    text = SHARE["man_page"]().replace("\\-", "-")
    wanted = [*(f".SS pysampler {verb}" for verb in verbs()), *long_options()]
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
