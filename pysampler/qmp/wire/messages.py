# SPDX-License-Identifier: MIT
"""QMP's output: greeting, replies, errors and events, byte for byte as QEMU prints them."""

from __future__ import annotations

import re
import time
from typing import Any

from pysampler.version import __version__

# Whom clients believe to talk to; the package says who it really is.
VERSION = {
    "qemu": {"micro": 2, "minor": 0, "major": 10},
    "package": f"pysampler {__version__}",
}

NO_ID = object()  # a request without `id`; null is an id


class QmpError(Exception):
    """A command is refused; the text is the reply's ``desc``.

    Attributes:
        error_class: ``GenericError`` or ``CommandNotFound``.
    """

    def __init__(self, desc: str, error_class: str = "GenericError") -> None:
        super().__init__(desc)
        self.error_class = error_class


def greeting() -> bytes:
    """Return the greeting, which a client reads first."""
    return encode({"QMP": {"version": VERSION, "capabilities": ["oob"]}})


def success(value: Any, request_id: object = NO_ID) -> bytes:
    """Return the reply to a command that was done."""
    reply = {"return": value}
    return encode(reply if request_id is NO_ID else {**reply, "id": request_id})


def failure(error: QmpError, request_id: object = NO_ID) -> bytes:
    """Return the reply to a command that was refused."""
    reply = {"error": {"class": error.error_class, "desc": str(error)}}
    return encode(reply if request_id is NO_ID else {"id": request_id, **reply})


def event(name: str, data: dict[str, Any] | None = None) -> bytes:
    """Return an event with the time of now."""
    seconds, ns = divmod(time.time_ns(), 1_000_000_000)
    message: dict[str, Any] = {
        "timestamp": {"seconds": seconds, "microseconds": ns // 1000},
        "event": name,
    }
    return encode(message if data is None else {**message, "data": data})


_UNSAFE = re.compile(r"[^ !#-\[\]-~]")  # all but printable ASCII without " and \
_SHORT = {
    '"': r"\"", "\\": r"\\", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t",
}  # fmt: skip
_SINGLE = {None: "null", True: "true", False: "false"}


class _Text(str):
    """JSON text that is ready, among values that are not."""

    __slots__ = ()


def encode(value: Any) -> bytes:
    r"""Return a value as QEMU prints JSON: ASCII, ``\u00E9``, 17 digits, CR LF at the end.

    It does not recurse: an ``id`` nested as deep as the parser allows must come back.
    """
    out: list[str] = []
    todo: list[Any] = [value]  # the next one last
    while todo:
        item = todo.pop()
        if isinstance(item, _Text):
            out.append(item)
        elif isinstance(item, str):
            out.append(_quoted(item))
        elif item is None or isinstance(item, bool):
            out.append(_SINGLE[item])
        elif isinstance(item, int):
            out.append(str(item))
        elif isinstance(item, float):
            out.append(f"{item:.17g}")
        else:
            todo.extend(reversed(_pieces(item)))
    out.append("\r\n")
    return "".join(out).encode("ascii")


def _pieces(container: Any) -> list[Any]:
    if isinstance(container, dict):
        pieces: list[Any] = [_Text("{")]
        for key, member in container.items():
            pieces += (_Text(f"{_quoted(key)}: "), member, _Text(", "))
        end = _Text("}")
    else:
        pieces = [_Text("[")]
        for item in container:
            pieces += (item, _Text(", "))
        end = _Text("]")
    if len(pieces) > 1:
        pieces[-1] = end
    else:
        pieces.append(end)
    return pieces


def _quoted(text: str) -> str:
    return f'"{_UNSAFE.sub(_escaped, text)}"'


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in _SHORT:
        return _SHORT[character]
    utf16 = character.encode("utf-16-be", "replace").hex().upper()
    return "".join(f"\\u{utf16[i : i + 4]}" for i in range(0, len(utf16), 4))
