# SPDX-License-Identifier: MIT
"""The human monitor: the two lines about the dirty rate, with QEMU's texts.

Numbers are plain integers, decimal or 0x...; QEMU would also calculate ``1+1``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pysampler.qmp.messages import QmpError
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from pysampler.qmp.dirty_rate import DirtyRate

_HELP = {
    "calc_dirty_rate": "calc_dirty_rate [-r] [-b] second [sample_pages_per_GB] -- start a round of "
    "guest dirty rate measurement (using -r to\n"
    "\t\t\t specify dirty ring as the method of calculation and\n"
    "\t\t\t -b to specify dirty bitmap as method of calculation)\n",
    "info dirty_rate": "info dirty_rate  -- show dirty rate information\n",
}


class _UsageError(Exception):
    """A line that the monitor does not understand."""


def run_line(line: str, dirty_rate: DirtyRate) -> str:
    """Run one line of the human monitor; return what it prints, in CR LF lines."""
    words = line.split()
    command = " ".join(words[:2]) if words[:1] == ["info"] else "".join(words[:1])
    arguments = words[2:] if words[:1] == ["info"] else words[1:]
    try:
        if not words:
            text = ""
        elif command in ("help", "?"):
            text = _help(" ".join(arguments))
        elif command == "info":
            text = _HELP["info dirty_rate"]
        elif command == "info dirty_rate":
            text = _info_dirty_rate(arguments, dirty_rate)
        elif command == "calc_dirty_rate":
            text = _calc_dirty_rate(arguments, dirty_rate)
        else:
            text = _unknown(command)
    except _UsageError as error:
        text = f'{error}\nTry "help {command}" for more information\n'
    except QmpError as error:
        text = f"Error: {error}\n"
    return text.replace("\n", "\r\n")


def _unknown(command: str) -> str:
    return f"unknown command: '{command}'\n"


def _help(about: str) -> str:
    if about == "info":
        return _HELP["info dirty_rate"]
    return "".join(_HELP.values()) if not about else _HELP.get(about, _unknown(about))


def _info_dirty_rate(arguments: list[str], dirty_rate: DirtyRate) -> str:
    if arguments:
        raise _UsageError("dirty_rate: extraneous characters at the end of line")
    info = dirty_rate.info()
    rate = f"{info['dirty-rate']} (MB/s)" if "dirty-rate" in info else "(not ready)"
    lines = [
        f"Status: {info['status']}",
        f"Start Time: {info['start-time']} (ms)",  # it is seconds, in QEMU too
        f"Sample Pages: {info['sample-pages']} (per GB)",
        f"Period: {info['calc-time']} (sec)",
        f"Mode: {info['mode']}",
        f"Dirty rate: {rate}",
        *(
            f"vcpu[{vcpu['id']}], Dirty rate: {vcpu['dirty-rate']} (MB/s)"
            for vcpu in info.get("vcpu-dirty-rate", ())
        ),
    ]
    if info["mode"] != Mode.PAGE_SAMPLING.value:
        del lines[2]
    return "\n".join(lines) + "\n"


def _calc_dirty_rate(words: list[str], dirty_rate: DirtyRate) -> str:
    options = set()
    while words and words[0].startswith("-"):
        option = words[0]
        if option not in ("-r", "-b"):
            raise _UsageError(f"calc_dirty_rate: unsupported option {option}")
        options.add(option)
        words = words[1:]
    if not words:
        raise _UsageError("unexpected end of expression")
    second, *sample_pages = (_integer(word) for word in words)
    if len(sample_pages) > 1:
        raise _UsageError("calc_dirty_rate: extraneous characters at the end of line")
    if second == 0:
        return "Incorrect period length specified!\n"
    if len(options) > 1:
        return "Either dirty ring or dirty bitmap can be specified!\n"
    modes = {"-r": Mode.DIRTY_RING, "-b": Mode.DIRTY_BITMAP}
    mode = modes[options.pop()] if options else Mode.PAGE_SAMPLING
    dirty_rate.start(second, sample_pages=sample_pages[0] if sample_pages else None, mode=mode)
    return (
        f"Starting dirty rate measurement with period {second} seconds\n"
        "[Please use 'info dirty_rate' to check results]\n"
    )


def _integer(word: str) -> int:
    match = re.match(r"0[xX][0-9a-fA-F]+|[0-9]+", word)
    end = match.end() if match else 0
    if end < len(word):
        raise _UsageError(f"invalid char '{word[end]}' in expression")
    if len(word) > 18:
        raise _UsageError("number too large")
    return int(word, 16 if word[:2] in ("0x", "0X") else 10)
