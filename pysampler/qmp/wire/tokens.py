# SPDX-License-Identifier: MIT
"""The tokens of QEMU's JSON dialect: their extent and their meaning."""

from __future__ import annotations

import math
import re
from enum import Enum
from typing import Any


class JsonError(Exception):
    """A token or a value is broken; the text is QEMU's."""


class Extent(Enum):
    """The extent of a token that is there."""

    WHOLE = "whole"
    BROKEN = "broken"  # by its last byte
    UNFINISHED = "unfinished"  # its end may be still to come


# What is skipped after a broken token, and after a value that is too large. Line ends and
# the bytes FE and FF end both; see "QMP specification", section "QGA synchronization".
REST_OF_TOKEN = re.compile(rb"[^\x00-\x08\x0a-\x1f\xfe\xff{}\[\]:,]*")
REST_OF_LINE = re.compile(rb"[^\x00-\x08\x0a-\x1f\xfe\xff]*")
SPACE = re.compile(rb"[ \t\r\n]*")

_KEYWORD = re.compile(rb"[a-z]*")
# The longest beginning of a number; it is a whole one when it ends in a digit.
_NUMBER = re.compile(rb"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:(?<=[0-9])[eE][+-]?[0-9]*)?)?")
_STRING_BODY = {
    quote: re.compile(
        rb"[^%b\\\x00-\x1f\xfe\xff]*(?:\\[^\x00-\x1f\xfe\xff][^%b\\\x00-\x1f\xfe\xff]*)*"
        % (quote, quote)
    )
    for quote in (b'"', b"'")
}

_KEYWORDS = {b"true": True, b"false": False, b"null": None}
_STRING_PART = re.compile(rb"\\u|\\.|[^\\]+")
_ESCAPES = {
    b'\\"': '"', rb"\'": "'", rb"\\": "\\", rb"\/": "/", rb"\b": "\b", rb"\f": "\f",
    rb"\n": "\n", rb"\r": "\r", rb"\t": "\t",
}  # fmt: skip
_UNICODE_ESCAPE = re.compile(
    rb"\\u(?:([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|([0-9a-fA-F]{4}))"
)
_LAST_OF_PLANES = "".join(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF))
_NOT_CHARACTERS = re.compile(f"[\ud800-\udfff\ufdd0-\ufdef{_LAST_OF_PLANES}]")


def end_of(pattern: re.Pattern[bytes], text: bytes, start: int) -> int:
    """Return where the match of a pattern at ``start`` ends; ``start`` when there is none."""
    match = pattern.match(text, start)
    return match.end() if match else start


def token_at(text: bytes, start: int) -> tuple[int, Extent]:
    """Return the end of the token at ``start`` and how much of it there is."""
    first = text[start : start + 1]
    if first in b"{}[]:,":
        return start + 1, Extent.WHOLE
    if first in b"\"'":
        return _string_at(text, start, first)
    if first in b"-0123456789":
        end = end_of(_NUMBER, text, start)
        if end == len(text):
            return end, Extent.UNFINISHED
        is_number = text[end - 1 : end].isdigit()
        leads_with_zero = text[start:end] in (b"0", b"-0") and text[end : end + 1].isdigit()
        if is_number and not leads_with_zero:
            return end, Extent.WHOLE
        return end + 1, Extent.BROKEN
    end = end_of(_KEYWORD, text, start)
    if end == start:
        return start + 1, Extent.BROKEN
    return end, Extent.UNFINISHED if end == len(text) else Extent.WHOLE


def _string_at(text: bytes, start: int, quote: bytes) -> tuple[int, Extent]:
    end = end_of(_STRING_BODY[quote], text, start + 1)
    is_closed = text[end : end + 1] == quote
    if text[end : end + 1] == b"\\":  # the other half of the escape is missing or broken
        end += 1
    if end == len(text):
        return end, Extent.UNFINISHED
    return end + 1, Extent.WHOLE if is_closed else Extent.BROKEN


def scalar(token: bytes) -> Any:
    """Return the string, number, boolean or None that a whole token stands for.

    Raises:
        JsonError: an escape, UTF-8 sequence or keyword that does not exist.
    """
    first = token[:1]
    if first in b"\"'":
        return _string(token)
    if first in b"-0123456789":
        return _number(token)
    if token not in _KEYWORDS:
        raise JsonError(f"invalid keyword '{shown(token)}'")
    return _KEYWORDS[token]


def shown(token: bytes) -> str:
    """Return a token as QEMU's C strings show it in a message."""
    return token.split(b"\0")[0].decode(errors="replace")


def _number(token: bytes) -> int | float:
    if not re.search(rb"[.eE]", token) and len(token) <= 20:
        integer = int(token)
        if -(1 << 63) <= integer < 1 << 64:
            return integer
    number = float(token)
    if math.isinf(number):  # QEMU would say `inf`, which is no JSON
        raise JsonError("number out of range")
    return number


def _string(token: bytes) -> str:
    parts = []
    position, last = 1, len(token) - 1
    while position < last:
        match = _STRING_PART.match(token, position, last)
        part = match[0] if match else b""
        if part == rb"\u":
            end, text = _unicode_escape(token, position)
        elif part in _ESCAPES:
            end, text = position + 2, _ESCAPES[part]
        elif part[:1] == b"\\":
            raise JsonError("invalid escape sequence in string")
        else:
            end = position + len(part)
            try:
                text = part.decode()
            except UnicodeDecodeError:
                text = "\ud800"
            if not text.isascii() and _NOT_CHARACTERS.search(text):
                raise JsonError("invalid UTF-8 sequence in string")
        parts.append(text)
        position = end
    return "".join(parts)


def _unicode_escape(token: bytes, start: int) -> tuple[int, str]:
    match = _UNICODE_ESCAPE.match(token, start)
    if match:
        high, low, single = match.groups()
        if high:
            code = 0x10000 + ((int(high, 16) & 0x3FF) << 10 | int(low, 16) & 0x3FF)
        else:
            code = int(single, 16)
        if not _NOT_CHARACTERS.match(chr(code)):
            return match.end(), chr(code)
    raise JsonError(f"{shown(token[start : start + 6])} is not a valid Unicode character")
