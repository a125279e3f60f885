# SPDX-License-Identifier: MIT
"""Commands about the limit of vCPUs' dirty rates, and the lines about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pysampler.migration.settings import DIRTY_LIMIT_METHODS
from pysampler.qmp.commands.definition import Command, Line
from pysampler.qmp.hmp import HmpLineError, integer, refuse_words
from pysampler.qmp.schema import Enum, Integer, Member, Unsigned
from pysampler.qmp.wire.messages import QmpError

if TYPE_CHECKING:
    from pysampler.qmp.commands.definition import Arguments, Monitor

_PAUSE_MS = 15_000  # of the method of 2021
_ASK_ME = "[Please use 'info vcpu_dirty_limit' to query dirty limit for virtual CPU]\n"


def _set(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.migration.set_dirty_limit(
        arguments["dirty-rate"],
        arguments.get("cpu-index"),
        arguments.get("x-method", DIRTY_LIMIT_METHODS[0]),
        arguments.get("x-pause", _PAUSE_MS) / 1000,
    )
    return {}


def _cancel(monitor: Monitor, arguments: Arguments) -> Any:
    monitor.migration.cancel_dirty_limit(arguments.get("cpu-index"))
    return {}


def _query(monitor: Monitor, _: Arguments) -> Any:
    return [
        {"limit-rate": limit, "current-rate": current, "cpu-index": index}
        for index, limit, current in monitor.migration.dirty_limits()
    ]


def _set_line(monitor: Monitor, words: list[str]) -> str:
    if not words:
        raise HmpLineError("unexpected end of expression")
    rate, *rest = [integer(word) for word in words[:2]]
    refuse_words("set_vcpu_dirty_limit", words[2:])
    if rate < 0:
        raise QmpError(f"invalid dirty page limit {rate}")
    monitor.migration.set_dirty_limit(rate, _vcpu(rest))
    return _ASK_ME


def _cancel_line(monitor: Monitor, words: list[str]) -> str:
    given = [integer(word) for word in words[:1]]
    refuse_words("cancel_vcpu_dirty_limit", words[1:])
    monitor.migration.cancel_dirty_limit(_vcpu(given))
    return _ASK_ME


def _vcpu(given: list[int]) -> int | None:
    """Return the vCPU that is meant; None for all, for which QEMU also takes -1."""
    return given[0] if given and given[0] != -1 else None


def _info_line(monitor: Monitor, words: list[str]) -> str:
    refuse_words("vcpu_dirty_limit", words)
    limits = monitor.migration.dirty_limits()
    if not limits:
        return "Dirty page limit not enabled!\n"
    return "".join(
        f"vcpu[{index}], limit rate {limit} (MB/s), current rate {current} (MB/s)\n"
        for index, limit, current in limits
    )


_CPU_INDEX = Member("cpu-index", Integer(), optional=True)

COMMANDS = {
    "set-vcpu-dirty-limit": Command(
        _set,
        (
            _CPU_INDEX,
            Member("dirty-rate", Unsigned()),
            Member("x-method", Enum(DIRTY_LIMIT_METHODS), optional=True),
            Member("x-pause", Unsigned(32), optional=True),
        ),
        may_block=True,
    ),
    "cancel-vcpu-dirty-limit": Command(_cancel, (_CPU_INDEX,), may_block=True),
    "query-vcpu-dirty-limit": Command(_query),
}

LINES = {
    "set_vcpu_dirty_limit": Line(
        _set_line,
        "set_vcpu_dirty_limit dirty_rate [cpu_index] -- set dirty page rate limit, use cpu_index "
        "to set limit\n"
        "\t\t\t\t\t on a specified virtual cpu\n",
        may_block=True,
    ),
    "cancel_vcpu_dirty_limit": Line(
        _cancel_line,
        "cancel_vcpu_dirty_limit [cpu_index] -- cancel dirty page rate limit, use cpu_index to "
        "cancel\n"
        "\t\t\t\t\t limit on a specified virtual cpu\n",
        may_block=True,
    ),
    "info vcpu_dirty_limit": Line(
        _info_line, "info vcpu_dirty_limit  -- show dirty page limit information of all vCPU\n"
    ),
}
