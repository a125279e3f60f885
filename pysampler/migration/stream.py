# SPDX-License-Identifier: MIT
"""The messages of a migration's stream, and the return path's, to and from bytes.

docs/migration.md draws the stream. Pages are not here: `core.PageSender` and `core.PageReceiver`
put them between the messages. Numbers have the lowest byte first.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pysampler import core
from pysampler.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

VERSION = 1

_MAGIC = b"psmigr\r\n"
_MAX_START = 1 << 18  # bytes; 64 blocks of the longest names, twice escaped, take less
_MAX_BLOCKS = 1 << 10
_MAX_VCPUS = 1 << 10
_MAX_CAPABILITIES = 1 << 8


class Kind(enum.IntEnum):
    """The kinds of messages, by their numbers in the stream; those of 16 and more go back."""

    START = 1
    ITERATION_END = 2
    STATE = 3
    END = 4
    ACK = 16


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: what guest is coming.

    Attributes:
        blocks: name and bytes of each RAMBlock, in the order in which they are sent.
        page_size: bytes of a page.
        vcpus: how many there are.
        capabilities: names of those that are on.
    """

    blocks: tuple[tuple[str, int], ...]
    page_size: int
    vcpus: int
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class IterationEnd:
    """The end of an iteration, the source's n-th from 1 on."""

    number: int


@dataclass(frozen=True, slots=True)
class State:
    """The guest's state, which comes after its last page.

    Attributes:
        running: whether the guest ran before the last pass, so that it is to run on.
        guest: what `pysampler.guest.snapshot.save` returned.
    """

    running: bool
    guest: bytes


@dataclass(frozen=True, slots=True)
class End:
    """All has been sent."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The destination's answer to the end.

    Attributes:
        loaded: whether the guest is there, whole.
    """

    loaded: bool


AnyMessage = Start | IterationEnd | State | End | Ack


def limits(max_state: int) -> Mapping[int, int]:
    """Return the most bytes that each message to the destination may have.

    Args:
        max_state: what `pysampler.guest.snapshot.max_bytes` says of the destination's guest.
    """
    most = {Kind.START: _MAX_START, Kind.ITERATION_END: 10, Kind.STATE: 1 + max_state, Kind.END: 0}
    return {int(kind): n_bytes for kind, n_bytes in most.items()}


def return_limits() -> Mapping[int, int]:
    """Return the most bytes that each message to the source may have."""
    return {int(Kind.ACK): 1}


def encode(message: AnyMessage) -> bytes:
    """Return a message as it is in the stream.

    Raises:
        ValueError: it is a start that no destination reads, as it is too long.
    """
    if isinstance(message, Start):
        members = {
            "blocks": message.blocks,
            "page-size": message.page_size,
            "vcpus": message.vcpus,
            "capabilities": message.capabilities,
        }
        text = json.dumps(members, ensure_ascii=False).encode("utf-8")
        payload = _MAGIC + VERSION.to_bytes(4, "little") + text
        if len(payload) > _MAX_START:
            raise ValueError(f"blocks and capabilities take {len(payload)} bytes of {_MAX_START}")
        return core.message_bytes(Kind.START, payload)
    if isinstance(message, IterationEnd):
        # The last two make it as long as what QEMU ends an iteration with: 18 bytes in all.
        return core.message_bytes(
            Kind.ITERATION_END, message.number.to_bytes(8, "little") + bytes(2)
        )
    if isinstance(message, State):
        return core.message_bytes(Kind.STATE, bytes([message.running]) + message.guest)
    if isinstance(message, Ack):
        return core.message_bytes(Kind.ACK, bytes([message.loaded]))
    return core.message_bytes(Kind.END, b"")


def decode(message: core.Message) -> AnyMessage:
    """Return what a message says. Its length is within the limits above.

    Raises:
        FormatError: it says nothing, or something that cannot be.
    """
    kind, payload = message
    if kind == Kind.START:
        return _decode_start(payload)
    if kind == Kind.ITERATION_END and len(payload) == 10 and payload[8:] == bytes(2):
        return IterationEnd(int.from_bytes(payload[:8], "little"))
    if kind == Kind.STATE and payload[:1] in {b"\0", b"\1"}:
        return State(bool(payload[0]), payload[1:])
    if kind == Kind.ACK and payload in {b"\0", b"\1"}:
        return Ack(bool(payload[0]))
    if kind == Kind.END and not payload:
        return End()
    known = {int(known): known.name.lower().replace("_", "-") for known in Kind}
    name = known.get(kind, f"of kind {kind}")
    raise FormatError(f"migration stream: message {name}: {len(payload)} bytes that are none")


def _decode_start(payload: bytes) -> Start:
    if not payload.startswith(_MAGIC) or len(payload) < len(_MAGIC) + 4:
        raise FormatError("migration stream: it does not begin as one of pysampler's does")
    version = int.from_bytes(payload[8:12], "little")
    if version != VERSION:
        raise FormatError(
            f"migration stream: version {version}; this pysampler reads {VERSION};"
            " use the same pysampler on both sides"
        )
    try:
        members = json.loads(payload[12:].decode("utf-8"))
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise FormatError("migration stream: message start: not an object of JSON")
    blocks = []
    for block in _array(members, "blocks", _MAX_BLOCKS):
        if not isinstance(block, list) or len(block) != 2:
            raise _wrong("blocks", "an array of names with their bytes")
        length = _number(block[1], "blocks", core.MAX_BLOCK_PAGES * core.STREAM_PAGE)
        blocks.append((_name(block[0], "blocks"), length))
    if len({name for name, _ in blocks}) < len(blocks):
        raise _wrong("blocks", "an array without a name twice")
    names = _array(members, "capabilities", _MAX_CAPABILITIES)
    return Start(
        tuple(blocks),
        _number(members.get("page-size"), "page-size", 1 << 30),
        _number(members.get("vcpus"), "vcpus", _MAX_VCPUS),
        tuple(_name(name, "capabilities") for name in names),
    )


def _array(members: Mapping[str, Any], name: str, most: int) -> list[object]:
    value = members.get(name)
    if not isinstance(value, list) or len(value) > most:
        raise _wrong(name, f"an array of at most {most}")
    return value


def _name(value: object, where: str) -> str:
    if isinstance(value, str):
        try:
            if 1 <= len(value.encode("utf-8")) <= core.MAX_BLOCK_NAME:
                return value
        except UnicodeEncodeError:  # half of a surrogate pair
            pass
    raise _wrong(where, f"an array of names of 1 to {core.MAX_BLOCK_NAME} bytes")


def _number(value: object, where: str, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise _wrong(where, f"a whole number from 1 to {most}")
    return value


def _wrong(name: str, wanted: str) -> FormatError:
    return FormatError(f"migration stream: message start: {name}: not {wanted}")
