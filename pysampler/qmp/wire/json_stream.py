# SPDX-License-Identifier: MIT
r"""QMP's input: a stream of JSON values, not lines.

A value may span lines and arrive in pieces. Two values may share a line. After a broken value,
later bytes must make sense again. All of this follows QEMU, as the QMP specification and a QEMU 7.2
show it:

- strings also in single quotes, ``\'`` as an escape, no key twice, integers beyond 64 bits
  are floating point;
- after a broken token the input is skipped to the next of ``{}[]:,``, control character or
  byte FE or FF, so a client that is lost sends FF and begins anew;
- a broken value is refused once, when its brackets balance.

Only the limit on a value's size is our own (64 KiB; QEMU has 64 MiB): no command needs more,
and parsing holds Python's interpreter lock. A value that is too large is skipped to the end of
its line, so that a line of 100 MB costs one error and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pysampler.qmp.wire.tokens import (
    REST_OF_LINE,
    REST_OF_TOKEN,
    SPACE,
    Extent,
    JsonError,
    end_of,
    scalar,
    shown,
    token_at,
)

if TYPE_CHECKING:
    import re
    from collections.abc import Iterator

MAX_VALUE_BYTES = 64 << 10  # of one value's tokens; the space between them does not count
MAX_NESTING = 1024


@dataclass(frozen=True, slots=True)
class BadInput:
    """Stands in the stream for input that is no value; ``desc`` is QEMU's."""

    desc: str


class JsonStream:
    """Cuts bytes into JSON values, however the bytes are chunked.

    Attributes:
        size: bytes of the tokens of the value that came last.

    >>> list(JsonStream().feed(b'{"id": 1}[] nonsense '))
    [{'id': 1}, [], BadInput(desc="JSON parse error, invalid keyword 'nonsense'")]
    """

    def __init__(self) -> None:
        self.size = 0
        self._unfinished = b""  # the beginning of a token
        self._skip: re.Pattern[bytes] | None = None  # what is skipped after an error
        self._value = _Value()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yield the values that end in ``data``, and a BadInput for each broken one.

        The iterator must be exhausted before the next call.
        """
        text = self._unfinished + data
        self._unfinished = b""
        position = 0
        while True:
            if self._skip:
                position = end_of(self._skip, text, position)
                if position == len(text):
                    return
                self._skip = None
            position = end_of(SPACE, text, position)
            if position == len(text):
                return
            end, extent = token_at(text, position)
            token = text[position:end]
            if self._value.size + len(token) > MAX_VALUE_BYTES:
                yield self._refuse("JSON token size limit exceeded", REST_OF_LINE)
                continue
            if extent is Extent.UNFINISHED:
                self._unfinished = token
                return
            position = end
            if extent is Extent.BROKEN:
                yield self._refuse(f"JSON parse error, stray '{shown(token)}'", REST_OF_TOKEN)
                continue
            value = self._value
            value.add(token)
            if value.depth > MAX_NESTING:
                yield self._refuse("JSON nesting depth limit exceeded", None)
            elif not value.is_open:
                self._value = _Value()
                self.size = value.size
                yield BadInput(f"JSON parse error, {value.error}") if value.error else value.top[0]

    def _refuse(self, desc: str, skip: re.Pattern[bytes] | None) -> BadInput:
        self._value = _Value()
        self.size = 0  # it is not kept
        self._skip = skip
        return BadInput(desc)


# Inside an object, what comes next.
_KEY, _COLON, _VALUE, _SEPARATOR = range(4)


class _Value:
    """One value in the making, fed token by token.

    Attributes:
        size: bytes of its tokens.
        depth: brackets that are open.
        is_open: whether it needs more tokens.
        error: the first thing that was wrong, in QEMU's words.
        top: the finished value is its only item.
    """

    def __init__(self) -> None:
        self.size = 0
        self.depth = 0
        self.is_open = True
        self.error: str | None = None
        self.top: list[Any] = []
        self._braces = 0
        self._brackets = 0
        self._containers: list[Any] = [self.top]
        self._expect = [_VALUE]  # one per container
        self._keys: list[Any] = []  # one per member whose value is not complete

    def add(self, token: bytes) -> None:
        """Take the next token; errors are kept until the brackets balance."""
        self.size += len(token)
        if token in b"{}":
            self._braces += 1 if token == b"{" else -1
        elif token in b"[]":
            self._brackets += 1 if token == b"[" else -1
        self.depth = self._braces + self._brackets
        # As in QEMU the kinds are counted apart: `{[}` goes on, `{]` ends.
        self.is_open = self.depth > 0 and self._braces >= 0 and self._brackets >= 0
        if self.error is None:
            try:
                self._parse(token)
            except JsonError as error:
                self.error = str(error)

    def _parse(self, token: bytes) -> None:
        container, expect = self._containers[-1], self._expect[-1]
        in_object = type(container) is dict
        if expect is _COLON:
            if token != b":":
                raise JsonError("missing : in object pair")
            self._expect[-1] = _VALUE
        elif expect is _SEPARATOR:
            if token == b",":
                self._expect[-1] = _KEY if in_object else _VALUE
            elif token == (b"}" if in_object else b"]"):
                self._close()
            else:
                raise JsonError(f"expected separator in {'dict' if in_object else 'list'}")
        elif token in b"{[":
            self._containers.append({} if token == b"{" else [])
            self._expect.append(_KEY if token == b"{" else _VALUE)
        elif token in b"}]:,":
            is_new = not container and (expect is _KEY if in_object else container is not self.top)
            if not is_new or token != (b"}" if in_object else b"]"):
                raise JsonError("expecting value")
            self._close()
        else:
            self._complete(scalar(token))

    def _close(self) -> None:
        self._expect.pop()
        self._complete(self._containers.pop())

    def _complete(self, value: Any) -> None:
        container = self._containers[-1]
        if type(container) is list:
            container.append(value)
            self._expect[-1] = _SEPARATOR
        elif self._expect[-1] is _KEY:
            if type(value) is not str:
                raise JsonError("key is not a string in object")
            self._keys.append(value)
            self._expect[-1] = _COLON
        else:
            key = self._keys.pop()
            if key in container:
                raise JsonError("duplicate key")
            container[key] = value
            self._expect[-1] = _SEPARATOR
