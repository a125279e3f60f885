# SPDX-License-Identifier: MIT
"""Find measurements in saved text: a vector, a QMP session, HMP's or virsh's text.

A session has a greeting, replies, events, typed commands and prompts. Text of HMP
(`info dirty_rate`) and of `virsh domstats --dirtyrate` is turned into the reply that QMP's
query-dirty-rate would have given, so that all three are judged in one way.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pysampler.errors import FormatError
from pysampler.printable import printable
from pysampler.vector.measurement import MAX_JSON_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST_VALUES = 10_000
_MOST_DIGITS = 40
# What stands before a value: qmp-shell's prompt, the arrows of QEMU's documents.
_PROMPT = re.compile(r"\s*(?:\([A-Za-z]{1,8}\)\s?|->\s|<-\s|[<>]\s)*\s*")
# Blanks, and no line's end: what is searched for may not run through all of a long text each time.
_HMP = re.compile(
    r"^[ \t]*(?:\(qemu\)[ \t]*)?(Status|Period|Mode|Dirty rate|vcpu\[\d{1,6}\], Dirty rate):"
    r"[ \t]*([^\r\n]{0,80})",
    re.MULTILINE,
)
_REFUSED = re.compile(r"^[ \t]*([Ee])rror: ([^\r\n]{1,200})", re.MULTILINE)  # HMP's; virsh's
_DOMAIN = re.compile(r"^[ \t]*Domain: '?([^'\r\n]{1,200})", re.MULTILINE)
_DOMSTATS = re.compile(r"^[ \t]*dirtyrate\.([a-z_.0-9]{1,60})=([^\r\n]{0,80})", re.MULTILINE)
_STATUS_OF_LIBVIRT = {"0": "unstarted", "1": "measuring", "2": "measured"}


class Pasted(NamedTuple):
    """The measurements found in a text.

    Attributes:
        vectors: JSON objects with periods, in their order.
        replies: QEMU's replies to query-dirty-rate, in their order.
        last: the last measurement of both; where there is none, the last value.
    """

    vectors: list[dict[str, Any]]
    replies: list[dict[str, Any]]
    last: object


def measurements_in(text: bytes) -> Pasted:
    """Find the measurements in a text.

    Raises:
        FormatError: there are none; the message says what was found instead, and quotes QEMU's
            error.
    """
    if len(text) > MAX_JSON_BYTES:
        raise FormatError(f"longer than {MAX_JSON_BYTES >> 20} MiB, so not a vector")
    if not text.strip():  # as of a pipe whose other end failed
        raise FormatError("empty: there is no vector in it")
    values = _values(_decoded(text))
    found = [value for value in values if _is_vector(value) or _is_reply(value)]
    if not found:
        _complain(values)
    return Pasted(
        [value for value in found if _is_vector(value)],
        [value for value in found if not _is_vector(value)],
        _last(found) if found else values[-1],
    )


def _last(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last measurement; one that QEMU has only begun counts only if it is alone."""
    done = [value for value in found if _is_vector(value) or "dirty-rate" in value]
    return (done or found)[-1]


def _is_vector(value: object) -> bool:
    return isinstance(value, dict) and "periods" in value


def _is_reply(value: object) -> bool:
    return isinstance(value, dict) and (
        "dirty-rate" in value or {"status", "calc-time"} <= value.keys()
    )


def _complain(values: list[Any]) -> None:
    """Raise the error that best explains why there is no measurement; a single value passes."""
    for value in reversed(values):
        if isinstance(value, dict) and isinstance(value.get("error"), dict):
            reason = value["error"].get("desc", value["error"].get("class"))
            raise FormatError(f"no measurement: QEMU refused: {_quoted(reason)}")
    if len(values) > 1 or (isinstance(values[0], dict) and "QMP" in values[0]):
        raise FormatError(
            "no measurement in this session; the reply to query-dirty-rate, or a vector, is missing"
        )


def _quoted(reason: object) -> str:
    return repr(printable(reason[:200])) if isinstance(reason, str) else "without a word"


def _decoded(text: bytes) -> str:
    try:
        # Also with a byte order mark, and UTF-16, which PowerShell writes.
        return text.decode(json.detect_encoding(text)).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise FormatError(f"not JSON: {error.reason} at byte {error.start}") from None


def _values(text: str) -> list[Any]:
    """Return the values in a text, in their order, without QMP's envelope."""
    values = list(_json_values(text))
    if values:
        return [reply for value in values for reply in _without_envelope(value)]
    values = _of_text(text)
    if values:
        return values
    refused = _REFUSED.findall(text)
    if refused:
        letter, reason = refused[-1]
        who = "QEMU" if letter == "E" else "virsh"
        raise FormatError(f"no measurement: {who} refused: {_quoted(reason)}")
    if "Start to calculate domain's memory dirty rate" in text:
        raise FormatError(
            "virsh domdirtyrate-calc only starts a measurement; `virsh domstats --dirtyrate DOMAIN`"
            " has what it found, for `pysampler advise --quick`"
        )
    try:
        return [_DECODER.decode(text)]  # a number, a string; or the reason why it is no JSON
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {_one_line(error)}") from None


def _of_text(text: str) -> list[Any]:
    return _hmp(text) or _domstats(text)


def _without_envelope(value: object) -> list[Any]:
    """Return the content of a reply; HMP's text in it is parsed, too."""
    while isinstance(value, dict) and "return" in value and "periods" not in value:
        value = value["return"]
        if isinstance(value, str):
            return _of_text(value) or [value]
    return [value]


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_int=_whole)


def _json_values(text: str) -> Iterator[object]:
    """Yield the JSON objects that begin a line, or stand on one."""
    at, n_values = 0, 0
    while (brace := text.find("{", at)) >= 0:
        at = max(at, text.rfind("\n", at, brace) + 1)  # lines without any say nothing
        start = cast("re.Match[str]", _PROMPT.match(text, at)).end()
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        if text[start : start + 1] == "{":
            try:
                value, at = _DECODER.raw_decode(text, start)
            except (ValueError, RecursionError) as error:
                line = f"line {text.count(chr(10), 0, start) + 1}: " if n_values else ""
                raise FormatError(f"not JSON: {line}{_one_line(error)}") from None
            values = [value]
        else:
            # A prompt, a command of the shell, a log's line around a reply, an array's bracket.
            values, at = _within(text[start:end]), end + 1
        n_values += len(values)
        if n_values > _MOST_VALUES:
            raise FormatError(f"more than {_MOST_VALUES} values, so not a session")
        yield from values


def _within(line: str) -> list[object]:
    """Return the objects within a line of other text."""
    found: list[object] = []
    start = line.find("{")
    while start >= 0 and len(found) <= _MOST_VALUES:
        try:
            value, end = _DECODER.raw_decode(line, start)
        except (ValueError, RecursionError):
            break
        found.append(value)
        start = line.find("{", end)
    return found


def _hmp(text: str) -> list[Any]:
    """Return a reply for each output of `info dirty_rate`."""
    replies: list[Any] = []
    for key, value in _HMP.findall(text):
        if key == "Status":
            replies.append({"status": value.strip(), "calc-time": 0})
        elif replies:
            reply, number = replies[-1], re.match(r"-?\d{1,18}\b", value)
            if key == "Period" and number:
                reply["calc-time"] = int(number[0])
                reply["calc-time-unit"] = "millisecond" if "(ms)" in value else "second"
            elif key == "Mode":
                reply["mode"] = value.strip()
            elif key == "Dirty rate" and number:
                reply["dirty-rate"] = int(number[0])
            elif key.startswith("vcpu") and number and "dirty-rate" not in reply:
                reply["of-vcpus"] = reply.get("of-vcpus", 0) + int(number[0])
    return [_with_vcpus(reply) for reply in replies]


def _domstats(text: str) -> list[Any]:
    """Return the replies in the output of `virsh domstats --dirtyrate` for one domain."""
    fields = _DOMSTATS.findall(text)
    domains = sorted(set(_DOMAIN.findall(text)))
    if not fields:
        return []
    if len(domains) > 1:
        names = ", ".join(printable(name[:40]) for name in domains[:4])
        raise FormatError(f"{len(domains)} domains ({names}); save `virsh domstats` of one")
    replies: list[Any] = []
    for key, value in fields:
        if key == "calc_status":
            status = value.strip()
            replies.append({"status": _STATUS_OF_LIBVIRT.get(status, status), "calc-time": 0})
        elif replies and re.fullmatch(r"-?\d{1,18}", value.strip()):
            reply, number = replies[-1], int(value)
            if key == "calc_period":
                reply["calc-time"] = number
            elif key == "megabytes_per_second":
                reply["dirty-rate"] = number
            elif key.endswith(".megabytes_per_second"):
                reply["of-vcpus"] = reply.get("of-vcpus", 0) + number
    return [_with_vcpus(reply) for reply in replies]


def _with_vcpus(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply with the sum of its vCPUs' rates where it has no rate of its own."""
    of_vcpus = reply.pop("of-vcpus", None)
    return reply if of_vcpus is None else {"dirty-rate": of_vcpus, **reply}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
