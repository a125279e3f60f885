# SPDX-License-Identifier: MIT
"""Workloads: what a vCPU writes, as people write it down.

A workload is ``NAME`` or ``NAME:KEY=VALUE,...``:

=============================================  ================================================
``idle``                                       nothing
``uniform``                                    pages at random, each as likely
``hotcold:hot=10%,hits=90%``                   the first 10 % of the pages get 90 % of the writes
``zipf:theta=0.99``                            the page of rank k is as likely as k^-theta
``sweep``                                      one page after the other, round and round
``kv:mix=A,value=1000,theta=0.99``             a slab store under a YCSB mix; see `guest.kv`
``burst:on=200ms,off=800ms,of=WORKLOAD``       the workload for 200 ms, then nothing for 800 ms
``silent:of=WORKLOAD``                         its writes store what is there already
``free:of=WORKLOAD``                           its writes make whole pages zero
``read:of=WORKLOAD``                           it reads the pages, and counts that as its writes
=============================================  ================================================

``of=`` comes last and takes all the rest; without it the workload inside is ``uniform``. All take

========= =====================================================================================
``wps``   writes a second, ``500k`` or ``max``; 100k when not given. In a burst, while it is on
``ws``    working set: the first so many bytes of the block, ``512M``; all of it when not given
``block`` which RAMBlock; the main one when not given
``lag``   of the time that a throttle takes, how much it makes up for at once; 20ms when not given
========= =====================================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pysampler.core import GUEST_PAGE_SIZE, Effect, Pattern
from pysampler.errors import UsageError
from pysampler.guest.kv import KvOptions, parse_sizes
from pysampler.units import parse_duration_ms, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_WPS = 100_000
DEFAULT_LAG_MS = 20
MAX_LAG_MS = 1000
MAX_WPS = 1_000_000_000

_COUNT = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)([kKM]?)", re.ASCII)
_FRACTION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})(%?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Workload:
    """What one vCPU writes. See the module's table.

    Attributes:
        text: as it was written down.
        pattern: which pages.
        effect: what a write does.
        wps: writes a second, 0 for as many as can be.
        ws: bytes of the working set; None for the whole block.
        block: idstr; None for the main block.
        lag_ms: of each absence that a throttle makes, and of several in a row, so much is made up
            for as soon as the vCPU runs again: requests that wait are served late. The rest is
            lost; 0 is a closed loop of requests, which makes up for nothing.
        on_ms, off_ms: a burst's times; off_ms 0 for no bursts.
        hot: fraction of pages that are hot.
        hits: fraction of writes that they get.
        theta: skew of zipf and kv.
        kv: the store.
    """

    text: str
    pattern: Pattern
    effect: Effect = Effect.MARK
    wps: int = DEFAULT_WPS
    ws: int | None = None
    block: str | None = None
    lag_ms: int = DEFAULT_LAG_MS
    on_ms: int = 0
    off_ms: int = 0
    hot: float = 0.1
    hits: float = 0.9
    theta: float = 0.99
    kv: KvOptions = field(default_factory=KvOptions)

    @classmethod
    def parse(cls, text: str) -> Workload:
        """Read a workload from its text.

        Raises:
            UsageError: an unknown name or key, a value out of range; the message names it.
        """
        return replace(_parse(text.strip(), depth=0), text=text.strip())


def parse_count(text: str, what: str) -> int:
    """Return the number of ``500k``, ``1.5M`` or ``3013680``; factors are powers of 1000.

    Raises:
        UsageError: it is none of these.
    """
    match = _COUNT.fullmatch(text)
    if match is None:
        raise UsageError(f"{what}: {text[:24]!r} is not a number; write 2500, 500k or 3M")
    number, prefix = match.groups()
    return round(float(number) * {"": 1, "k": 1000, "m": 1_000_000}[prefix.lower()])


def parse_fraction(text: str, what: str) -> float:
    """Return the fraction of ``60%`` or ``0.6``.

    Raises:
        UsageError: it is not from 0 to 1.
    """
    match = _FRACTION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what}: {text[:24]!r} is not a fraction; write 60% or 0.6")
    fraction = float(match[1]) / (100 if match[2] else 1)
    if fraction > 1:
        raise UsageError(f"{what}: {text} is more than all; write 60% or 0.6")
    return fraction


def sequence_seed(seed: int, vcpu: int, phase: int) -> int:
    """Return the seed of one vCPU's sequence of pages in one phase, 64 bits."""
    digest = blake2b(f"{seed}/{vcpu}/{phase}".encode("ascii"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _wps(text: str, what: str) -> int:
    if text == "max":
        return 0
    wps = parse_count(text, what)
    if not 1 <= wps <= MAX_WPS:
        raise UsageError(f"{what}: {text} is not from 1 to {MAX_WPS}, nor max")
    return wps


def _ws(text: str, what: str) -> int:
    ws = parse_size(text, what)
    if not ws or ws % GUEST_PAGE_SIZE:
        raise UsageError(f"{what}: {text} is no whole number of pages of 4 KiB")
    return ws


def _milliseconds(text: str, what: str) -> int:
    ms, _ = parse_duration_ms(text, what)
    if not 1 <= ms <= 86_400_000:
        raise UsageError(f"{what}: {text} is not from 1ms to 24h")
    return ms


def _lag(text: str, what: str) -> int:
    ms = 0 if text == "0" else parse_duration_ms(text, what)[0]
    if ms > MAX_LAG_MS:
        raise UsageError(f"{what}: {text} is not from 0ms to 1s")
    return ms


def _theta(text: str, what: str) -> float:
    match = _FRACTION.fullmatch(text)
    if match is None or match[2] or not 0.01 <= float(text) <= 10:
        raise UsageError(f"{what}: {text[:24]!r} is not from 0.01 to 10")
    return float(text)


def _hot(text: str, what: str) -> float:
    hot = parse_fraction(text, what)
    if not hot:
        raise UsageError(f"{what}: {text}: no page would be hot")
    return hot


_COMMON: dict[str, Callable[[str, str], Any]] = {
    "wps": _wps,
    "ws": _ws,
    "block": lambda text, _: text,
    "lag": _lag,
}
_PATTERNS: dict[str, tuple[Pattern, dict[str, Callable[[str, str], Any]]]] = {
    "idle": (Pattern.IDLE, {}),
    "uniform": (Pattern.UNIFORM, {}),
    "hotcold": (Pattern.HOTCOLD, {"hot": _hot, "hits": parse_fraction}),
    "zipf": (Pattern.ZIPF, {"theta": _theta}),
    "sweep": (Pattern.SWEEP, {}),
    "kv": (
        Pattern.KV,
        {
            "theta": _theta,
            "mix": lambda text, _: text.upper(),
            "keys": parse_count,
            "value": parse_sizes,
        },
    ),
}
_WRAPPERS: dict[str, dict[str, Callable[[str, str], Any]]] = {
    "burst": {"on": _milliseconds, "off": _milliseconds},
    "silent": {},
    "free": {},
    "read": {},
}
_MAX_DEPTH = 3  # of workloads around a pattern


def _parse(text: str, depth: int) -> Workload:
    name, _, rest = text.partition(":")
    if name in _WRAPPERS and depth < _MAX_DEPTH:
        return _parse_wrapper(name, rest, depth)
    if name not in _PATTERNS:
        known = ", ".join((*_PATTERNS, *_WRAPPERS))
        raise UsageError(f"workload {text[:40]!r}: no such workload; there is {known}")
    pattern, parsers = _PATTERNS[name]
    values = _parse_options(name, rest, {**_COMMON, **parsers})
    if "lag" in values:
        if not values.get("wps", DEFAULT_WPS):
            raise UsageError(
                f"workload {name}: lag= with wps=max: without a pace nothing is missed;"
                " leave it out"
            )
        values["lag_ms"] = values.pop("lag")
    if pattern is Pattern.KV:
        options = {key: values.pop(key) for key in ("mix", "keys", "value") if key in values}
        values["kv"] = KvOptions(**options)
    return Workload(text=text, pattern=pattern, **values)


def _parse_wrapper(name: str, rest: str, depth: int) -> Workload:
    # What is not the wrapper's own is the inner workload's: burst:on=1s,off=1s,wps=5k
    before, _, inner = f",{rest}".partition(",of=")
    words = [word for word in before.split(",") if word]
    parsers = _WRAPPERS[name]
    own = [word for word in words if word.partition("=")[0] in parsers]
    inner_name, _, inner_rest = (inner or "uniform").partition(":")
    inner_words = [word for word in words if word not in own] + [inner_rest] * bool(inner_rest)
    workload = _parse(f"{inner_name}:{','.join(inner_words)}", depth + 1)
    if name == "silent":
        return replace(workload, effect=Effect.SILENT)
    if name == "free":
        return replace(workload, effect=Effect.FREE)
    if name == "read":
        return replace(workload, effect=Effect.READ)
    values = _parse_options(name, ",".join(own), parsers)
    if len(values) < 2:
        raise UsageError("workload burst: needs on= and off=, as in burst:on=200ms,off=800ms")
    return replace(workload, on_ms=values["on"], off_ms=values["off"])


def _parse_options(
    name: str, text: str, parsers: dict[str, Callable[[str, str], Any]]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in text.split(",") if text else ():
        key, equals, value = word.partition("=")
        if key not in parsers or not equals:
            raise UsageError(
                f"workload {name}: {word[:40]!r} is none of its options, which are "
                + ", ".join(f"{key}=" for key in parsers)
            )
        if key in values:
            raise UsageError(f"workload {name}: {key}= twice")
        values[key] = parsers[key](value, f"workload {name}: {key}")
    return values
