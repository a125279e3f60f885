# SPDX-License-Identifier: MIT
"""Write the man page and the completions, both from the parsers, where a system looks for them.

The argument is the folder, which gets ``man/man1/pysampler.1`` and the like. It needs shtab.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import shtab

import pysampler
from pysampler import cli

COMPLETIONS = {
    "bash": "bash-completion/completions/pysampler",
    "zsh": "zsh/site-functions/_pysampler",
    "fish": "fish/vendor_completions.d/pysampler.fish",
}
EXIT_STATUS = {
    0: "Done.",
    1: "Refused or failed; the reason is on standard error.",
    2: "Wrong usage.",
    3: "An interrupted measurement: what was measured until then is printed.",
    130: "Interrupted before there was anything to keep.",
}


def escape(text: str) -> str:
    """Return a text as roff shows it, on one line."""
    text = " ".join(text.split()).replace("\\", "\\e").replace("-", "\\-")
    # A dot or a quote at the beginning would be a request.
    return f"\\&{text}" if text.startswith((".", "'")) else text


def value(action: argparse.Action) -> str:
    """Return the placeholder of an argument's value; empty for a flag."""
    if action.nargs == 0:
        return ""
    name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if action.metavar is None and action.choices:
        name = "|".join(map(str, action.choices))
    name = escape(name)
    return {"?": f"[{name}]", "*": f"[{name} ...]", "+": f"{name} ..."}.get(str(action.nargs), name)


def arguments(parser: argparse.ArgumentParser) -> list[str]:
    """Return the lines that describe a parser's options and arguments."""
    lines = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of them
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            continue
        placeholder = value(action)
        names = [f"\\fB{escape(name)}\\fR" for name in action.option_strings]
        shown = ", ".join(names) or f"\\fI{placeholder}\\fR"
        if names and placeholder:
            shown += f" \\fI{placeholder}\\fR"
        words = (action.help or "") % {**vars(action), "prog": parser.prog}
        lines += [".TP", shown, escape(words) or "\\&"]
    return lines


def man_page() -> str:
    """Return the page in the man macros of roff."""
    parser = cli.build_parser()
    (commands,) = (
        action
        for action in parser._actions  # noqa: SLF001 - as above
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001 - as above
    )
    lines = [
        f'.TH PYSAMPLER 1 "" "pysampler {pysampler.__version__}" "User Commands"',
        ".SH NAME",
        "pysampler \\- measure how a guest dirties its memory, and predict its migration",
        ".SH SYNOPSIS",
        "\\fBpysampler\\fR [\\fIoptions\\fR] \\fIcommand\\fR [\\fIarguments\\fR]",
        ".SH DESCRIPTION",
        escape(parser.description or ""),
        ".SH OPTIONS",
        *arguments(parser),
        ".SH COMMANDS",
    ]
    for name, command in commands.choices.items():
        summary = escape(cli.VERBS[name])
        lines += [f".SS pysampler {name}", summary[0].upper() + summary[1:] + "."]
        lines += arguments(command)
    lines.append(".SH EXIT STATUS")
    for code, meaning in EXIT_STATUS.items():
        lines += [".TP", f"\\fB{code}\\fR", escape(meaning)]
    return "\n".join(lines) + "\n"


def main(folder: str) -> None:
    """Write all of them."""
    files = {"man/man1/pysampler.1": man_page()}
    for shell, name in COMPLETIONS.items():
        files[name] = shtab.complete(cli.build_parser(), shell=shell)
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
