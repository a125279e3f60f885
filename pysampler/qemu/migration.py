# SPDX-License-Identifier: MIT
"""QEMU's live migration as data: parameters, capabilities, and the constants of its loop.

All of QEMU 10.0.2. The sources are files of QEMU: qapi/migration.json for names, types and enums,
migration/options.c for defaults, bounds, the order of the checks and their texts, and those that
stand beside the constants. Replies of a real QEMU confirm the tables
(tests/golden/migrate-set-qemu10.jsonl).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pysampler.qemu.dirty_rate import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

Value = int | bool | str


class ParameterType(enum.Enum):
    """What QMP takes for a parameter. SIZE is in bytes, or in bytes per second."""

    UINT8 = "uint8"
    UINT32 = "uint32"
    UINT64 = "uint64"
    SIZE = "size"
    BOOL = "bool"
    ENUM = "enum"
    STRING = "string"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One member of query-migrate-parameters.

    Attributes:
        name: as QMP has it.
        type: what QMP takes.
        default: its value before it is set.
        least: the lower bound. A text is the name of the parameter whose value it is.
        most: the upper bound; None where the type alone bounds it.
        range_error: QEMU's text for a value outside the bounds; empty where there are none.
        values: of an enum, in QEMU's order.
        power_of_two: a value must be one.
    """

    name: str
    type: ParameterType
    default: Value
    least: int | str = 0
    most: int | None = None
    range_error: str = ""
    values: tuple[str, ...] = ()
    power_of_two: bool = False


def _bounded(
    name: str, type_: ParameterType, default: int, least: int | str, most: int | None, expects: str
) -> Parameter:
    """Return a parameter with bounds; ``expects`` is what the error says after its name."""
    # QEMU's errors of range write the name so, but for the experimental parameter.
    shown = name if name.startswith("x-") else name.replace("-", "_")
    return Parameter(name, type_, default, least, most, f"Parameter '{shown}' {expects}")


_UINT8, _UINT64, _SIZE = ParameterType.UINT8, ParameterType.UINT64, ParameterType.SIZE
_PERCENT = "expects an integer in the range of 1 to 99"
MOST_DOWNTIME_MS = 2000 * 1000  # so QEMU's text writes it
_DOWNTIME = "expects an integer in the range of 0 to (2000 * 1000) ms"
_THROTTLE = "expects an integer in the range of cpu_throttle_initial to 99"

# In the order in which QEMU checks them; the last ones have no bounds.
_ALL_PARAMETERS = (
    _bounded(
        "throttle-trigger-threshold", _UINT8, 50, 1, 100,
        "expects an integer in the range of 1 to 100",
    ),
    _bounded("cpu-throttle-initial", _UINT8, 20, 1, 99, _PERCENT),
    _bounded("cpu-throttle-increment", _UINT8, 10, 1, 99, _PERCENT),
    Parameter("cpu-throttle-tailslow", ParameterType.BOOL, False),
    Parameter("max-bandwidth", _SIZE, 128 << 20),  # bytes/s; 0: unlimited
    Parameter("avail-switchover-bandwidth", _SIZE, 0),  # bytes/s; 0: estimated
    _bounded("downtime-limit", _UINT64, 300, 0, MOST_DOWNTIME_MS, _DOWNTIME),  # ms
    _bounded("multifd-channels", _UINT8, 2, 1, 255, "expects a value between 1 and 255"),
    _bounded("multifd-zlib-level", _UINT8, 1, 0, 9, "expects a value between 0 and 9"),
    _bounded("multifd-qatzip-level", _UINT8, 1, 1, 9, "expects a value between 1 and 9"),
    _bounded("multifd-zstd-level", _UINT8, 1, 0, 20, "expects a value between 0 and 20"),
    Parameter(
        "xbzrle-cache-size", _SIZE, 64 << 20, 4096, None,
        "Parameter 'xbzrle_cache_size' expects a power of two no less than the target page size",
        power_of_two=True,
    ),
    Parameter("max-postcopy-bandwidth", _SIZE, 0),  # bytes/s; 0: unlimited
    _bounded("max-cpu-throttle", _UINT8, 99, "cpu-throttle-initial", 99, _THROTTLE),
    _bounded("announce-initial", _SIZE, 50, 0, 100_000, "expects a value between 0 and 100000"),
    _bounded("announce-max", _SIZE, 550, 0, 100_000, "expects a value between 0 and 100000"),
    _bounded("announce-rounds", _SIZE, 5, 0, 1000, "expects a value between 0 and 1000"),
    # The text says 0, but QEMU refuses that.
    _bounded("announce-step", _SIZE, 100, 1, 10_000, "expects a value between 0 and 10000"),
    _bounded(
        "x-vcpu-dirty-limit-period", _UINT64, 1000, 1, 1000, "expects a value between 1 and 1000",
    ),  # ms
    # MB/s. The text says more than 1, but 1 is taken.
    _bounded("vcpu-dirty-limit", _UINT64, 1, 1, None, "must be greater than 1 MB/s"),
    Parameter(
        "mode", ParameterType.ENUM, "normal", values=("normal", "cpr-reboot", "cpr-transfer")
    ),
    Parameter(
        "zero-page-detection", ParameterType.ENUM, "multifd", values=("none", "legacy", "multifd")
    ),
    # There are more where QEMU was built with their libraries.
    Parameter("multifd-compression", ParameterType.ENUM, "none", values=("none", "zlib", "zstd")),
    Parameter("tls-creds", ParameterType.STRING, ""),
    Parameter("tls-hostname", ParameterType.STRING, ""),
    Parameter("tls-authz", ParameterType.STRING, ""),
    Parameter("x-checkpoint-delay", ParameterType.UINT32, 20_000),
    Parameter("direct-io", ParameterType.BOOL, False),
)  # fmt: skip

# Name -> parameter, in the order in which QEMU checks them.
PARAMETERS = {parameter.name: parameter for parameter in _ALL_PARAMETERS}

# The order in which query-migrate-parameters reports them, as recorded.
REPORTED_ORDER = (
    "cpu-throttle-tailslow", "xbzrle-cache-size", "cpu-throttle-initial", "announce-max",
    "direct-io", "avail-switchover-bandwidth", "zero-page-detection", "multifd-qatzip-level",
    "multifd-channels", "mode", "multifd-zstd-level", "announce-initial", "downtime-limit",
    "tls-authz", "vcpu-dirty-limit", "multifd-compression", "announce-rounds", "announce-step",
    "tls-creds", "x-vcpu-dirty-limit-period", "multifd-zlib-level", "max-cpu-throttle",
    "max-postcopy-bandwidth", "tls-hostname", "throttle-trigger-threshold", "max-bandwidth",
    "x-checkpoint-delay", "cpu-throttle-increment",
)  # fmt: skip


def default_of(name: str) -> int:
    """Return the default of a parameter that is a number."""
    return int(PARAMETERS[name].default)


def range_error(settings: Mapping[str, Value | float]) -> str | None:
    """Return QEMU's text for the first parameter that is out of its bounds, None if none is.

    Args:
        settings: name -> value of all parameters, old and new together, each of its type. Others
            may be among them.
    """
    for parameter in PARAMETERS.values():
        if parameter.range_error and _out_of_range(parameter, settings):
            return parameter.range_error
    return None


def _out_of_range(parameter: Parameter, settings: Mapping[str, Value | float]) -> bool:
    # QMP takes a negative number for an unsigned one of 64 bits: -1 is 2^64 - 1.
    value = int(settings[parameter.name]) % (1 << 64)
    least = parameter.least
    if value < (int(settings[least]) if isinstance(least, str) else least):
        return True
    if parameter.most is not None and value > parameter.most:
        return True
    return parameter.power_of_two and value & (value - 1) != 0


# In the order of query-migrate-capabilities. All are off at first.
CAPABILITIES = (
    "xbzrle", "rdma-pin-all", "auto-converge", "zero-blocks", "events", "postcopy-ram", "x-colo",
    "release-ram", "return-path", "pause-before-switchover", "multifd", "dirty-bitmaps",
    "postcopy-blocktime", "late-block-activate", "x-ignore-shared", "validate-uuid",
    "background-snapshot", "zero-copy-send", "postcopy-preempt", "switchover-ack", "dirty-limit",
    "mapped-ram",
)  # fmt: skip

# No capability, but needed by one: vCPUs with a dirty ring.
DIRTY_RING = "a dirty ring"


@dataclass(frozen=True, slots=True)
class CapabilityRule:
    """A capability that does not go with another, or not without it.

    Attributes:
        capability: the one that has the rule.
        other: a capability, or DIRTY_RING.
        error: QEMU's text.
        needs_other: True: not without the other. False: not with it.
    """

    capability: str
    other: str
    error: str
    needs_other: bool = False

    def broken_by(self, enabled: AbstractSet[str]) -> bool:
        """Return whether these capabilities break the rule."""
        return self.capability in enabled and (self.other in enabled) is not self.needs_other


_NOT_WITH_SNAPSHOT = (
    "postcopy-ram", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate", "return-path",
    "multifd", "pause-before-switchover", "auto-converge", "release-ram", "rdma-pin-all", "xbzrle",
    "x-colo", "validate-uuid", "zero-copy-send",
)  # fmt: skip

# In the order in which QEMU checks them.
CAPABILITY_RULES = (
    CapabilityRule(
        "postcopy-ram", "x-ignore-shared", "Postcopy is not compatible with ignore-shared"
    ),
    CapabilityRule("postcopy-ram", "multifd", "Postcopy is not yet compatible with multifd"),
    *(
        CapabilityRule(
            "background-snapshot", other, f"Background-snapshot is not compatible with {other}"
        )
        for other in _NOT_WITH_SNAPSHOT
    ),
    CapabilityRule(
        "zero-copy-send", "multifd",
        "Zero copy only available for non-compressed non-TLS multifd migration", needs_other=True,
    ),
    CapabilityRule(
        "postcopy-preempt", "postcopy-ram", "Postcopy preempt requires postcopy-ram",
        needs_other=True,
    ),
    CapabilityRule(
        "switchover-ack", "return-path",
        "Capability 'switchover-ack' requires capability 'return-path'", needs_other=True,
    ),
    CapabilityRule(
        "dirty-limit", "auto-converge",
        "dirty-limit conflicts with auto-converge either of then available currently",  # sic
    ),
    CapabilityRule(
        "dirty-limit", DIRTY_RING,
        "dirty-limit requires KVM with accelerator property 'dirty-ring-size' set",
        needs_other=True,
    ),
    CapabilityRule("multifd", "xbzrle", "Multifd is not compatible with xbzrle"),
    CapabilityRule("mapped-ram", "xbzrle", "Mapped-ram migration is incompatible with xbzrle"),
    CapabilityRule(
        "mapped-ram", "postcopy-ram", "Mapped-ram migration is incompatible with postcopy"
    ),
)  # fmt: skip


def capability_error(enabled: AbstractSet[str]) -> str | None:
    """Return QEMU's text for the first rule that is broken, None if none is.

    Args:
        enabled: the capabilities that are on, old and new together; and DIRTY_RING where the vCPUs
            have one.
    """
    for rule in CAPABILITY_RULES:
        if rule.broken_by(enabled):
            return rule.error
    return None


# ---- the loop of pre-copy ----

WINDOW_MS = 100  # the rate is limited and measured over this time (migration/migration.c)
WINDOWS_PER_S = (
    1000 // WINDOW_MS
)  # so a window's budget is max-bandwidth / 10 (migration/migration-stats.c)
ITERATION_MS = 50  # the longest that one iteration sends pages (migration/ram.c)
ITERATION_CHECK_PAGES = 64  # pages between two looks at that time (migration/ram.c)
ITERATION_BYTES = 5 + 8 + 5  # section header, end mark, footer (migration/savevm.c)
STATISTICS_MS = 1000  # the least time between two accounts of dirty pages (migration/ram.c)

# ---- pages on the wire (migration/ram.c) ----

PAGE_HEADER_BYTES = 8
PAGE_BYTES = PAGE_SIZE + PAGE_HEADER_BYTES
ZERO_PAGE_BYTES = PAGE_HEADER_BYTES + 1
# The output buffer is flushed, and the budget looked at, when its 64 vectors are full: a header and
# a page each (migration/qemu-file.c).
FLUSH_PAGES = 32
# A packet of multifd has a fixed part, and an offset of 8 bytes a page (migration/multifd.h).
MULTIFD_PACKET_PAGES = 128
MULTIFD_PACKET_HEADER_BYTES = 320 + 8 * MULTIFD_PACKET_PAGES
MULTIFD_ZERO_PAGE_BYTES = 8

# ---- auto-converge (migration/cpu-throttle.c) ----
# The constants of its steps are in csrc/pysampler.h, and so is how long a vCPU runs between sleeps.

THROTTLE_SYNC_MS = 5000  # a sync comes after this time at the latest

# ---- dirty-limit (system/dirtylimit.c); the constants of its steps are in csrc/pysampler.h ----

# Over which a vCPU's rate is measured, unless a migration sets x-vcpu-dirty-limit-period.
DIRTY_LIMIT_PERIOD_MS = 1000
