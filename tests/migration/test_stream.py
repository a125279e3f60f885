"""The messages of a migration's stream: to bytes and back, and what is none."""

import json

import pytest

from pysampler import core
from pysampler.errors import FormatError
from pysampler.migration.stream import (
    VERSION,
    Ack,
    End,
    IterationEnd,
    Kind,
    Start,
    State,
    decode,
    encode,
    limits,
    return_limits,
)

START = Start((("pc.ram", 1 << 30), ("vga", 4096)), 4096, 4, ("auto-converge",))
MAGIC = b"psmigr\r\n"


def message_of(data):
    """Read the word that a message begins with, by the description in pysampler.h."""
    word = int.from_bytes(data[:8], "little")
    assert word & 0xFF == 0x80
    assert word >> 24 == len(data) - 8
    return core.Message(word >> 8 & 0xFFFF, data[8:])


@pytest.mark.parametrize(
    "message",
    [
        START,
        Start((("ü" * 127, 1),), 1, 1),
        IterationEnd(0),
        IterationEnd((1 << 64) - 1),
        State(running=True, guest=b"state"),
        State(running=False, guest=b""),
        End(),
        Ack(loaded=True),
        Ack(loaded=False),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_comes_back_from_its_bytes_within_its_limit(message):
    read = message_of(encode(message))
    assert decode(read) == message
    allowed = {**limits(5), **return_limits()}
    assert len(read.payload) <= allowed[read.kind]


def test_the_end_of_an_iteration_has_18_bytes_as_qemus():
    assert len(encode(IterationEnd(7))) == 18


def start(version=VERSION, **changed):
    members = {"blocks": [["pc.ram", 4096]], "page-size": 4096, "vcpus": 1, "capabilities": []}
    text = json.dumps({**members, **changed}).encode()
    return MAGIC + version.to_bytes(4, "little") + text


def test_members_that_are_not_known_yet_are_passed_over():
    expected = Start((("pc.ram", 4096),), 4096, 1)
    assert decode(core.Message(Kind.START, start(more=[1]))) == expected


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "does not begin as one of pysampler's does"),
        (b"x" * 100, "does not begin as one of pysampler's does"),
        (MAGIC + b"\1\0", "does not begin as one of pysampler's does"),
        (start(2), "version 2; this pysampler reads 1; use the same pysampler on both sides"),
        (start()[:-1], "message start: not an object of JSON"),
        (start()[:12] + b"[" * 100_000, "message start: not an object of JSON"),
        (start()[:12] + b"\xff", "message start: not an object of JSON"),
        (start()[:12] + b"[]", "message start: not an object of JSON"),
        (start(blocks=None), "blocks: not an array of at most"),
        (start(blocks=[["a", 1]] * 1025), "blocks: not an array of at most"),
        (start(blocks=[["a"]]), "blocks: not an array of names with their bytes"),
        (start(blocks=[["", 1]]), "blocks: not an array of names of 1 to 255 bytes"),
        (start(blocks=[["a" * 256, 1]]), "blocks: not an array of names of 1 to 255 bytes"),
        (start(blocks=[["\ud800", 1]]), "blocks: not an array of names of 1 to 255 bytes"),
        (start(blocks=[[1, 1]]), "blocks: not an array of names of 1 to 255 bytes"),
        (start(blocks=[["a", 0]]), "blocks: not a whole number from 1 to"),
        (start(blocks=[["a", True]]), "blocks: not a whole number from 1 to"),
        (start(blocks=[["a", 1.0]]), "blocks: not a whole number from 1 to"),
        (start(blocks=[["a", 1 << 60]]), "blocks: not a whole number from 1 to"),
        (start(blocks=[["a", 1], ["a", 2]]), "blocks: not an array without a name twice"),
        (start(capabilities="x"), "capabilities: not an array of at most"),
        (start(capabilities=[None]), "capabilities: not an array of names"),
        (start(**{"page-size": "4096"}), "page-size: not a whole number"),
        (start(vcpus=1025), "vcpus: not a whole number from 1 to 1024"),
    ],
)
def test_a_start_that_is_none_is_refused_by_name(payload, message):
    with pytest.raises(FormatError, match=message) as caught:
        decode(core.Message(Kind.START, payload))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "payload", "message"),
    [
        (Kind.ITERATION_END, bytes(9), "message iteration-end: 9 bytes that are none"),
        (Kind.ITERATION_END, bytes(9) + b"\1", "message iteration-end: 10 bytes"),
        (Kind.STATE, b"", "message state: 0 bytes that are none"),
        (Kind.STATE, b"\2x", "message state: 2 bytes that are none"),
        (Kind.ACK, b"", "message ack: 0 bytes that are none"),
        (Kind.ACK, b"\2", "message ack: 1 bytes that are none"),
        (Kind.END, b"\0", "message end: 1 bytes that are none"),
        (77, b"", "message of kind 77: 0 bytes that are none"),
    ],
)
def test_another_message_that_is_none_is_refused_by_name(kind, payload, message):
    with pytest.raises(FormatError, match=message):
        decode(core.Message(kind, payload))


def test_a_start_that_no_destination_would_read_is_not_sent():
    blocks = tuple((f"{i:0255}", 4096) for i in range(1024))
    with pytest.raises(ValueError, match="bytes of 262144"):
        encode(Start(blocks, 4096, 1))
