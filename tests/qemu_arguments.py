"""Arguments of QEMU 10.0.2's commands about migration, declared for tests of the schema alone.

`ROWS` is what a real one said to wrong arguments.
"""

import json
from pathlib import Path

from pysampler.qmp.commands.table import COMMANDS
from pysampler.qmp.schema import (
    Array,
    Boolean,
    Enum,
    Integer,
    Member,
    String,
    Struct,
    Unsigned,
    check_arguments,
)
from pysampler.qmp.wire.messages import QmpError

TABLE = Path(__file__).parent / "golden" / "qmp-argument-errors.jsonl"
ROWS = [json.loads(line) for line in TABLE.read_text().splitlines()]

_CAPABILITY = Struct(
    (Member("capability", Enum(("events", "multifd"))), Member("state", Boolean()))
)
_SOCKET = Struct(
    (Member("type", Enum(("inet", "unix", "vsock", "fd"))),),
    {
        "inet": Struct(
            (
                Member("host", String()),
                Member("port", String()),
                Member("numeric", Boolean(), optional=True),
                Member("to", Unsigned(16), optional=True),
                Member("ipv4", Boolean(), optional=True),
            )
        ),
        "unix": Struct((Member("path", String()),)),
        "vsock": Struct((Member("cid", String()), Member("port", String()))),
        "fd": Struct((Member("str", String()),)),
    },
)
_ADDRESS = Struct(
    (Member("transport", Enum(("socket", "exec", "rdma", "file"))),),
    {
        "socket": _SOCKET,
        "exec": Struct((Member("args", Array(String())),)),
        "rdma": Struct((Member("host", String()), Member("port", String()))),
        "file": Struct((Member("filename", String()), Member("offset", Unsigned()))),
    },
)
_CHANNELS = Array(Struct((Member("channel-type", Enum(("main",))), Member("addr", _ADDRESS))))
_BITMAPS = Array(
    Struct(
        (
            Member("name", String()),
            Member("alias", String()),
            Member(
                "transform",
                Struct((Member("persistent", Boolean(), optional=True),)),
                optional=True,
            ),
        )
    )
)
_MAPPING = Array(
    Struct((Member("node-name", String()), Member("alias", String()), Member("bitmaps", _BITMAPS)))
)

# In QEMU's order, which decides what is found first.
_PARAMETERS = {
    "cpu-throttle-initial": Unsigned(8),
    "cpu-throttle-tailslow": Boolean(),
    "max-bandwidth": Unsigned(),
    "downtime-limit": Unsigned(),
    "multifd-channels": Unsigned(8),
    "block-bitmap-mapping": _MAPPING,
    "x-vcpu-dirty-limit-period": Unsigned(),
    "vcpu-dirty-limit": Unsigned(),
    "mode": Enum(("normal", "cpr-reboot")),
    "zero-page-detection": Enum(("none", "legacy", "multifd")),
    "direct-io": Boolean(),
}

ARGUMENTS = {
    **{name: command.arguments for name, command in COMMANDS.items()},
    "migrate-set-capabilities": (Member("capabilities", Array(_CAPABILITY)),),
    "migrate-set-parameters": tuple(
        Member(name, kind, optional=True) for name, kind in _PARAMETERS.items()
    ),
    "cancel-vcpu-dirty-limit": (Member("cpu-index", Integer(), optional=True),),
    "migrate": (
        Member("uri", String(), optional=True),
        Member("channels", _CHANNELS, optional=True),
        Member("detach", Boolean(), optional=True),
        Member("resume", Boolean(), optional=True),
    ),
    "migrate-incoming": (
        Member("uri", String(), optional=True),
        Member("channels", _CHANNELS, optional=True),
        Member("exit-on-error", Boolean(), optional=True),
    ),
    "migrate-continue": (Member("state", Enum(("none", "setup", "pre-switchover"))),),
    "migrate-recover": (Member("uri", String()),),
    "migrate-pause": (),
}


def error_of(name, arguments):
    """Return what the schema of a command says to arguments; None when it takes them."""
    try:
        check_arguments(ARGUMENTS[name], arguments)
    except QmpError as error:
        return str(error)
    return None
