# SPDX-License-Identifier: MIT
"""Types of the migration commands' arguments: qapi/migration.json and qapi/sockets.json."""

from __future__ import annotations

from pysampler.migration.settings import (
    AGGRESSION,
    AGGRESSION_LEVEL,
    AGGRESSION_RATIO,
    AGGRESSION_RATIOS,
    DIRTY_LIMIT_METHOD,
    DIRTY_LIMIT_METHODS,
)
from pysampler.qemu.migration import CAPABILITIES, PARAMETERS, Parameter, ParameterType
from pysampler.qmp.schema import (
    Array,
    Boolean,
    Enum,
    Member,
    Number,
    String,
    StringOrNull,
    Struct,
    Type,
    Unsigned,
)

# All of QEMU's, also those that an emulated guest never has.
STATUSES = (
    "none", "setup", "cancelling", "cancelled", "active", "postcopy-active", "postcopy-paused",
    "postcopy-recover-setup", "postcopy-recover", "completed", "failed", "colo", "pre-switchover",
    "device", "wait-unplug",
)  # fmt: skip


def optional(name: str, type_: Type) -> Member:
    """Return a member that may be left out."""
    return Member(name, type_, optional=True)


_INET = Struct(
    (
        Member("host", String()),
        Member("port", String()),
        optional("numeric", Boolean()),
        optional("to", Unsigned(16)),
        optional("ipv4", Boolean()),
        optional("ipv6", Boolean()),
        optional("keep-alive", Boolean()),
        optional("mptcp", Boolean()),
    )
)
_UNIX = Struct(
    (
        Member("path", String()),
        optional("abstract", Boolean()),
        optional("tight", Boolean()),
    )
)
_SOCKET = Struct(
    (Member("type", Enum(("inet", "unix", "vsock", "fd"))),),
    {
        "inet": _INET,
        "unix": _UNIX,
        "vsock": Struct((Member("cid", String()), Member("port", String()))),
        "fd": Struct((Member("str", String()),)),
    },
)
_ADDRESS = Struct(
    (Member("transport", Enum(("socket", "exec", "rdma", "file"))),),
    {
        "socket": _SOCKET,
        "exec": Struct((Member("args", Array(String())),)),
        "rdma": _INET,
        "file": Struct((Member("filename", String()), Member("offset", Unsigned()))),
    },
)
_CHANNEL = Struct((Member("channel-type", Enum(("main", "cpr"))), Member("addr", _ADDRESS)))

MIGRATE = (
    optional("uri", String()),
    optional("channels", Array(_CHANNEL)),
    optional("detach", Boolean()),
    optional("resume", Boolean()),
)
INCOMING = (
    optional("uri", String()),
    optional("channels", Array(_CHANNEL)),
    optional("exit-on-error", Boolean()),
)
CAPABILITY_NAMES = (*CAPABILITIES, AGGRESSION)
SET_CAPABILITIES = (
    Member(
        "capabilities",
        Array(
            Struct((Member("capability", Enum(CAPABILITY_NAMES)), Member("state", Boolean()))),
        ),
    ),
)

_ALIASES = Array(
    Struct(
        (
            Member("name", String()),
            Member("alias", String()),
            optional("transform", Struct((optional("persistent", Boolean()),))),
        )
    )
)
BITMAP_MAPPING = "block-bitmap-mapping"
_BITMAP_MAPPING = Array(
    Struct((Member("node-name", String()), Member("alias", String()), Member("bitmaps", _ALIASES)))
)

# In the schema's order, which decides what is found wrong first.
_PARAMETER_ORDER = (
    "announce-initial", "announce-max", "announce-rounds", "announce-step",
    "throttle-trigger-threshold", "cpu-throttle-initial", "cpu-throttle-increment",
    "cpu-throttle-tailslow", "tls-creds", "tls-hostname", "tls-authz", "max-bandwidth",
    "avail-switchover-bandwidth", "downtime-limit", "x-checkpoint-delay", "multifd-channels",
    "xbzrle-cache-size", "max-postcopy-bandwidth", "max-cpu-throttle", "multifd-compression",
    "multifd-zlib-level", "multifd-qatzip-level", "multifd-zstd-level", BITMAP_MAPPING,
    "x-vcpu-dirty-limit-period", "vcpu-dirty-limit", "mode", "zero-page-detection", "direct-io",
)  # fmt: skip


def _type_of(parameter: Parameter) -> Type:
    if parameter.type is ParameterType.ENUM:
        return Enum(parameter.values)
    return _TYPES[parameter.type]


_TYPES: dict[ParameterType, Type] = {
    ParameterType.UINT8: Unsigned(8),
    ParameterType.UINT32: Unsigned(32),
    ParameterType.UINT64: Unsigned(),
    ParameterType.SIZE: Unsigned(),
    ParameterType.BOOL: Boolean(),
    ParameterType.STRING: StringOrNull(),
}

SET_PARAMETERS = (
    *(
        optional(name, _BITMAP_MAPPING if name == BITMAP_MAPPING else _type_of(PARAMETERS[name]))
        for name in _PARAMETER_ORDER
    ),
    optional(AGGRESSION_LEVEL, Number()),
    optional(AGGRESSION_RATIO, Enum(AGGRESSION_RATIOS)),
    optional(DIRTY_LIMIT_METHOD, Enum(DIRTY_LIMIT_METHODS)),
)
