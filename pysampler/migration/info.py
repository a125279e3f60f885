# SPDX-License-Identifier: MIT
"""What query-migrate and the line ``info migrate`` tell of a migration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# A QEMU's own settings, which it prints first.
_GLOBALS = (
    "globals:",
    "store-global-state: on",
    "only-migratable: off",
    "send-configuration: on",
    "send-section-footer: on",
    "send-switchover-start: on",
    "clear-bitmap-shift: 18",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RamInfo:
    """The counts of a migration's RAM. Their order is that of QEMU's reply.

    Attributes:
        total: bytes of all blocks.
        postcopy_requests: pages that the destination asked for.
        dirty_sync_count: fetches of the dirty log so far.
        multifd_bytes: 0.
        pages_per_second: of the last window; zero pages too.
        downtime_bytes: bytes of RAM sent while the vCPUs stood still.
        page_size: bytes.
        remaining: bytes that are still to be sent.
        postcopy_bytes: bytes of RAM sent in post-copy.
        mbps: 10^6 bit/s of the last window, or of the whole migration once it has completed.
        transferred: bytes of the stream that have left.
        dirty_sync_missed_zero_copy: 0.
        precopy_bytes: bytes of RAM sent while the vCPUs ran.
        duplicate: zero pages.
        dirty_pages_rate: pages that became dirty per second.
        normal_bytes: bytes of the pages sent whole.
        normal: pages sent whole.
    """

    total: int
    postcopy_requests: int = 0
    dirty_sync_count: int = 0
    multifd_bytes: int = 0
    pages_per_second: int = 0
    downtime_bytes: int = 0
    page_size: int = 4096
    remaining: int = 0
    postcopy_bytes: int = 0
    mbps: float = 0
    transferred: int = 0
    dirty_sync_missed_zero_copy: int = 0
    precopy_bytes: int = 0
    duplicate: int = 0
    dirty_pages_rate: int = 0
    normal_bytes: int = 0
    normal: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the member ``ram`` of the reply."""
        return _members(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationInfo:
    """The reply to query-migrate; None: that member is absent. Their order is QEMU's.

    Attributes:
        expected_downtime: ms.
        postcopy_blocktime: ms in which all vCPUs waited for pages.
        dirty_limit_ring_full_time: us in which the fastest vCPU fills its dirty ring.
        cpu_throttle_percentage: the share of time that auto-converge takes from each vCPU.
        status: QEMU's word for the state.
        setup_time: ms.
        error_desc: why the migration failed.
        x_pysampler: what QEMU does not have.
        downtime: ms.
        total_time: ms.
        postcopy_vcpu_blocktime: ms in which each vCPU waited for pages.
        ram: the counts of its RAM.
        socket_address: where the destination listens, each an object as QMP has it.
        dirty_limit_throttle_time_per_round: the longest sleep of a vCPU at a full ring, us.
    """

    expected_downtime: int | None = None
    postcopy_blocktime: int | None = None
    dirty_limit_ring_full_time: int | None = None
    cpu_throttle_percentage: int | None = None
    status: str
    setup_time: int | None = None
    error_desc: str | None = None
    x_pysampler: Mapping[str, Any] | None = None
    downtime: int | None = None
    total_time: int | None = None
    postcopy_vcpu_blocktime: Sequence[int] | None = None
    ram: RamInfo | None = None
    socket_address: Sequence[Mapping[str, Any]] | None = None
    dirty_limit_throttle_time_per_round: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the reply."""
        reply = _members(self)
        if self.ram is not None:
            reply["ram"] = self.ram.to_json()
        return reply


def _members(info: RamInfo | MigrationInfo) -> dict[str, Any]:
    values = ((field.name, getattr(info, field.name)) for field in fields(info))
    return {name.replace("_", "-"): value for name, value in values if value is not None}


def info_lines(info: MigrationInfo | None) -> str:
    """Return what ``info migrate`` prints.

    Args:
        info: None: nothing has been migrated.
    """
    lines = [*_GLOBALS, *(_migration_lines(info) if info is not None else ())]
    return "".join(f"{line}\n" for line in lines)


def _migration_lines(info: MigrationInfo) -> Iterator[str]:
    reason = f" ({info.error_desc})" if info.status == "failed" and info.error_desc else ""
    yield f"Migration status: {info.status}{reason}"
    yield f"total time: {info.total_time or 0} ms"
    if info.expected_downtime is not None:
        yield f"expected downtime: {info.expected_downtime} ms"
    if info.downtime is not None:
        yield f"downtime: {info.downtime} ms"
    if info.setup_time is not None:
        yield f"setup: {info.setup_time} ms"
    if info.ram is not None:
        yield from _ram_lines(info.ram)
    if info.cpu_throttle_percentage is not None:
        yield f"cpu throttle percentage: {info.cpu_throttle_percentage}"
    if info.dirty_limit_throttle_time_per_round is not None:
        yield f"dirty-limit throttle time: {info.dirty_limit_throttle_time_per_round} us"
    if info.dirty_limit_ring_full_time is not None:
        yield f"dirty-limit ring full time: {info.dirty_limit_ring_full_time} us"
    if info.postcopy_blocktime is not None:
        yield f"postcopy blocktime: {info.postcopy_blocktime}"
    if info.postcopy_vcpu_blocktime is not None:
        yield f"postcopy vcpu blocktime: {_ranges(info.postcopy_vcpu_blocktime)}"
    if info.socket_address is not None:
        yield "socket address: ["
        yield from (f"\t{_uri(address)}" for address in info.socket_address)
        yield "]"


def _ram_lines(ram: RamInfo) -> Iterator[str]:
    yield f"transferred ram: {ram.transferred >> 10} kbytes"
    yield f"throughput: {ram.mbps:.2f} mbps"
    yield f"remaining ram: {ram.remaining >> 10} kbytes"
    yield f"total ram: {ram.total >> 10} kbytes"
    yield f"duplicate: {ram.duplicate} pages"
    yield f"normal: {ram.normal} pages"
    yield f"normal bytes: {ram.normal_bytes >> 10} kbytes"
    yield f"dirty sync count: {ram.dirty_sync_count}"
    yield f"page size: {ram.page_size >> 10} kbytes"
    yield f"multifd bytes: {ram.multifd_bytes >> 10} kbytes"
    yield f"pages-per-second: {ram.pages_per_second}"
    if ram.dirty_pages_rate:
        yield f"dirty pages rate: {ram.dirty_pages_rate} pages"
    if ram.postcopy_requests:
        yield f"postcopy request count: {ram.postcopy_requests}"
    if ram.precopy_bytes:
        yield f"precopy ram: {ram.precopy_bytes >> 10} kbytes"
    if ram.downtime_bytes:
        yield f"downtime ram: {ram.downtime_bytes >> 10} kbytes"
    if ram.postcopy_bytes:
        yield f"postcopy ram: {ram.postcopy_bytes >> 10} kbytes"


def _ranges(numbers: Sequence[int]) -> str:
    """Return numbers as QEMU prints a list of them: in order, each once, neighbours as a range."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _uri(address: Mapping[str, Any]) -> str:
    if address["type"] == "unix":
        return f"unix:{address['path']}"
    return f"tcp:{address['host']}:{address['port']}"
