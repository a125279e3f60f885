# SPDX-License-Identifier: MIT
"""Commands that QEMU does not have, named with x- as experimental ones are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pysampler.qmp.commands.definition import Command
from pysampler.qmp.schema import Integer, Member

if TYPE_CHECKING:
    from pysampler.qmp.commands.definition import Arguments, Monitor


def _x_query_workload(monitor: Monitor, _: Arguments) -> Any:
    return [
        {
            "cpu-index": vcpu.index,
            "thread-id": vcpu.thread_id,
            "workload": vcpu.workload,
            "writes": vcpu.writes,
            "writes-per-second": round(vcpu.writes_per_second),
        }
        for vcpu in monitor.guest.vcpus()
    ]


def _x_count_dirty_since(monitor: Monitor, arguments: Arguments) -> Any:
    pages = monitor.guest.count_dirty_since(arguments["monotonic-ns"])
    return {
        "blocks": [{"id": idstr, "pages": count} for idstr, count in pages.items()],
        "pages": sum(pages.values()),
    }


COMMANDS = {
    "x-count-dirty-since": Command(
        _x_count_dirty_since, (Member("monotonic-ns", Integer()),), may_block=True
    ),
    "x-query-workload": Command(_x_query_workload),
}
