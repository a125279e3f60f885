# SPDX-License-Identifier: MIT
"""The human monitor: finds the line that is meant and runs it, with QEMU's texts.

Numbers are plain integers, decimal or 0x...; QEMU would also calculate ``1+1``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pysampler.errors import PysamplerError
from pysampler.qmp.wire.messages import QmpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pysampler.qmp.commands.definition import Line, Monitor


class HmpLineError(Exception):
    """A line that the monitor does not understand."""


def run_line(line: str, monitor: Monitor) -> str:
    """Run one line of the human monitor; return what it prints, in CR LF lines."""
    command, arguments = _split(line)
    try:
        if not command:
            text = ""
        elif command in ("help", "?"):
            text = _help(" ".join(arguments), monitor.lines)
        elif command == "info":
            text = _help("info", monitor.lines)
        elif command in monitor.lines:
            text = monitor.lines[command].run(monitor, arguments)
        else:
            text = _unknown(command)
    except HmpLineError as error:
        text = f'{error}\nTry "help {command}" for more information\n'
    except (QmpError, PysamplerError) as error:
        text = f"Error: {error}\n"
    return text.replace("\n", "\r\n")


def may_block(line: str, lines: Mapping[str, Line]) -> bool:
    """Return whether a line must be kept out of the event loop."""
    command, _ = _split(line)
    return command in lines and lines[command].may_block


def _split(line: str) -> tuple[str, list[str]]:
    """Return the command of a line, which is two words after ``info``, and its arguments."""
    words = line.split()
    length = 2 if words[:1] == ["info"] else 1
    return " ".join(words[:length]), words[length:]


def _unknown(command: str) -> str:
    return f"unknown command: '{command}'\n"


def _help(about: str, lines: Mapping[str, Line]) -> str:
    if about in lines:
        return lines[about].help
    if about not in ("", "info"):
        return _unknown(about)
    return "".join(line.help for name, line in lines.items() if name.startswith(about))


def take_options(name: str, words: list[str], known: str) -> tuple[set[str], list[str]]:
    """Return the options at the beginning of a line, each a letter, and the words after them.

    Raises:
        HmpLineError: there is one that the line does not take.
    """
    options = set()
    while words and words[0].startswith("-"):
        letter = words[0][1:2]
        if not letter or letter not in known:
            raise HmpLineError(f"{name}: unsupported option -{letter}")
        refuse_words(name, [words[0][2:]] if words[0][2:] else [])
        options.add(letter)
        words = words[1:]
    return options, words


def refuse_words(name: str, words: list[str]) -> None:
    """Refuse words that a line does not take.

    Raises:
        HmpLineError: there are some.
    """
    if words:
        raise HmpLineError(f"{name}: extraneous characters at the end of line")


def integer(word: str) -> int:
    """Return the integer that a word stands for.

    Raises:
        HmpLineError: it is none, or too large.
    """
    match = re.match(r"-?(?:0[xX][0-9a-fA-F]+|[0-9]+)", word)
    end = match.end() if match else 0
    if end < len(word):
        raise HmpLineError(f"invalid char '{word[end]}' in expression")
    if len(word) > 18:
        raise HmpLineError("number too large")
    return int(word, 16 if word.lstrip("-")[:2] in ("0x", "0X") else 10)
