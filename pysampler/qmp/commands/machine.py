# SPDX-License-Identifier: MIT
"""Commands about the machine: whether it runs, its vCPUs, its memory."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from pysampler.guest.run_state import RunState
from pysampler.qmp.commands.definition import Command, Line
from pysampler.qmp.hmp import refuse_words

if TYPE_CHECKING:
    from pysampler.qmp.commands.definition import Arguments, Monitor


def _query_status(monitor: Monitor, _: Arguments) -> Any:
    state = monitor.guest.state
    return {"status": state.value, "running": state is RunState.RUNNING}


def _stop(monitor: Monitor, _: Arguments) -> Any:
    if monitor.guest.stop():
        monitor.emit("STOP")
    return {}


def _cont(monitor: Monitor, _: Arguments) -> Any:
    if monitor.guest.cont():
        monitor.emit("RESUME")
    return {}


def _info_status(monitor: Monitor, words: list[str]) -> str:
    refuse_words("status", words)
    state = monitor.guest.state
    if state in (RunState.RUNNING, RunState.PAUSED):
        return f"VM status: {state.value}\n"
    return f"VM status: paused ({state.value})\n"


def _query_cpus_fast(monitor: Monitor, _: Arguments) -> Any:
    return [
        {
            "thread-id": vcpu.thread_id,
            "props": {"core-id": vcpu.index, "thread-id": 0, "socket-id": 0},
            "qom-path": f"/machine/unattached/device[{vcpu.index}]",
            "cpu-index": vcpu.index,
            "target": platform.machine(),
        }
        for vcpu in monitor.guest.vcpus()
    ]


def _query_memory_size_summary(monitor: Monitor, _: Arguments) -> Any:
    return {"base-memory": monitor.guest.blocks[0].length, "plugged-memory": 0}


COMMANDS = {
    "cont": Command(_cont, may_block=True),
    "stop": Command(_stop, may_block=True),
    "query-memory-size-summary": Command(_query_memory_size_summary),
    "query-cpus-fast": Command(_query_cpus_fast),
    "query-status": Command(_query_status),
}

LINES = {
    "info status": Line(
        _info_status, "info status  -- show the current VM status (running|paused)\n"
    ),
}
