# SPDX-License-Identifier: MIT
"""Commands about the dirty rate, and the two lines about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pysampler.qmp.commands.definition import Command, Line
from pysampler.qmp.dirty_rate_state import UNITS
from pysampler.qmp.hmp import HmpLineError, integer, refuse_words, take_options
from pysampler.qmp.schema import Enum, Integer, Member
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from pysampler.qmp.commands.definition import Arguments, Monitor


def _calc_dirty_rate(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.dirty_rate.start(
        arguments["calc-time"],
        arguments.get("calc-time-unit", "second"),
        arguments.get("sample-pages"),
        Mode(arguments.get("mode", "page-sampling")),
    )
    return {}


def _calc_dirty_rate_line(monitor: Monitor, words: list[str]) -> str:
    options, words = take_options("calc_dirty_rate", words, "rb")
    if not words:
        raise HmpLineError("unexpected end of expression")
    second, *sample_pages = (integer(word) for word in words)
    refuse_words("calc_dirty_rate", words[2:])
    if second == 0:
        return "Incorrect period length specified!\n"
    if len(options) > 1:
        return "Either dirty ring or dirty bitmap can be specified!\n"
    modes = {"r": Mode.DIRTY_RING, "b": Mode.DIRTY_BITMAP}
    mode = modes[options.pop()] if options else Mode.PAGE_SAMPLING
    monitor.dirty_rate.start(
        second, sample_pages=sample_pages[0] if sample_pages else None, mode=mode
    )
    return (
        f"Starting dirty rate measurement with period {second} seconds\n"
        "[Please use 'info dirty_rate' to check results]\n"
    )


def _query_dirty_rate(monitor: Monitor, arguments: Arguments) -> Any:
    return monitor.dirty_rate.info(arguments.get("calc-time-unit", "second"))


def _info_dirty_rate(monitor: Monitor, words: list[str]) -> str:
    refuse_words("dirty_rate", words)
    info = monitor.dirty_rate.info()
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


_CALC_TIME_UNIT = Member("calc-time-unit", Enum(UNITS), optional=True)

COMMANDS = {
    "query-dirty-rate": Command(_query_dirty_rate, (_CALC_TIME_UNIT,)),
    "calc-dirty-rate": Command(
        _calc_dirty_rate,
        (
            Member("calc-time", Integer()),
            _CALC_TIME_UNIT,
            Member("sample-pages", Integer(), optional=True),
            Member("mode", Enum(tuple(mode.value for mode in Mode)), optional=True),
        ),
    ),
}

LINES = {
    "calc_dirty_rate": Line(
        _calc_dirty_rate_line,
        "calc_dirty_rate [-r] [-b] second [sample_pages_per_GB] -- start a round of "
        "guest dirty rate measurement (using -r to\n"
        "\t\t\t specify dirty ring as the method of calculation and\n"
        "\t\t\t -b to specify dirty bitmap as method of calculation)\n",
    ),
    "info dirty_rate": Line(_info_dirty_rate, "info dirty_rate  -- show dirty rate information\n"),
}
