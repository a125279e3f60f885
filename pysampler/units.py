# SPDX-License-Identifier: MIT
"""Units: the only module that knows how many bytes a GiB or a gigabit is."""

from __future__ import annotations

import math
import re
from typing import Literal

from pysampler.errors import UsageError

MIB = 1 << 20
GIB = 1 << 30

CalcTimeUnit = Literal["second", "millisecond"]

_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)?", re.ASCII)
_EXACT_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|min|h)", re.ASCII)
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kKMGT])(i?))?(bps|bit/s|B/s)", re.ASCII)
MAX_RATE = 1e15  # bytes/s; far above any link
_DURATION_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000}
_EXACT_MS = {"us": 1e-3, **_DURATION_MS}


def parse_size(text: str, what: str = "size") -> int:
    """Return the bytes of ``4096``, ``16M``, ``4G`` or ``4GiB``; factors are powers of 1024.

    Raises:
        UsageError: ``text`` is none of these.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what}: {text[:40]!r} is not a size; write bytes, or 16M, 4G")
    digits, prefix = match.groups()
    if len(digits) > 20:
        raise UsageError(f"{what}: {text[:24]}... is more memory than there is")
    return int(digits) << (10 * "KMGT".index(prefix.upper()) + 10 if prefix else 0)


def parse_duration_ms(text: str, what: str = "duration") -> tuple[int, CalcTimeUnit]:
    """Return whole milliseconds of ``60s``, ``500ms``, ``2m`` or ``1.5`` (seconds).

    The second value is the unit of QMP's ``calc-time-unit`` that says the duration
    without loss: ``second`` when it was written in seconds and is a whole number of them.

    Raises:
        UsageError: ``text`` is not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or len(text) > 24:
        raise UsageError(f"{what}: {text[:24]!r} is not a duration; write 60s, 500ms or 2m")
    number, suffix = match.groups()
    ms = round(float(number) * _DURATION_MS[suffix or "s"])
    return ms, "millisecond" if suffix == "ms" or ms % 1000 else "second"


def parse_exact_ms(text: str, what: str = "duration") -> float:
    """Return the milliseconds of ``200us``, ``0.4ms`` or ``1.5s``: unrounded, and with a unit.

    Raises:
        UsageError: ``text`` is not a duration, or has no unit.
    """
    match = _EXACT_DURATION.fullmatch(text.strip())
    if match is None or len(text) > 24:
        raise UsageError(f"{what}: {text[:24]!r} is not a duration; write 200us, 0.4ms or 1s")
    number, suffix = match.groups()
    return float(number) * _EXACT_MS[suffix]


def parse_rate(text: str, what: str = "rate") -> float:
    """Return the bytes per second of ``10Gbps``, ``1Gibps``, ``400MiB/s`` or ``419430400``.

    ``bps`` and ``bit/s`` are bits, ``B/s`` bytes; k, M, G, T are powers of 1000 and Ki, Mi, Gi, Ti
    powers of 1024. A plain number is bytes per second, as QEMU's max-bandwidth is.

    Raises:
        UsageError: ``text`` is not a rate, or not one of a link.
    """
    text = text.strip()
    match = _RATE.fullmatch(text)
    if len(text) > 24 or not (match or re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII)):
        raise UsageError(
            f"{what}: {text[:24]!r} is not a rate; write 10Gbps, 1Gibps, 400MiB/s or bytes a second"
        )
    if match is None:
        rate = float(text)
    else:
        number, prefix, binary, unit = match.groups()
        power = " kMGT".index((prefix or " ").replace("K", "k"))
        rate = float(number) * (1024.0 if binary else 1000.0) ** power
        rate /= 1 if unit == "B/s" else 8
    if not 0 < rate <= MAX_RATE:
        raise UsageError(f"{what}: {text!r} is not between 0 and 10^15 bytes a second")
    return rate


def format_rate(bytes_per_s: float) -> str:
    """Return bytes per second in the unit that gives the roundest number: ``10 Gbps``."""
    units = (("Gbps", 1.25e8), ("Gibps", GIB / 8), ("MiB/s", MIB), ("Mbps", 1.25e5))
    for unit, size in (*units, ("Mibps", MIB / 8)):
        value = bytes_per_s / size
        if value >= 1 and math.isclose(value, round(value, 1), rel_tol=1e-9):
            return f"{_four_digits(value)} {unit}"
    unit, size = ("Gbps", 1.25e8) if bytes_per_s >= 1.25e9 else ("Mbps", 1.25e5)
    return f"{_four_digits(bytes_per_s / size)} {unit}"


def _four_digits(value: float) -> str:
    """Return four digits, or as many as a large number has."""
    return f"{value:.4g}" if value < 9999.5 else f"{value:.0f}"


def format_size(n_bytes: float) -> str:
    """Return bytes as people read them: ``16 MiB``, ``1.5 GiB``."""
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if n_bytes >= 1 << exponent:
            value = n_bytes / (1 << exponent)
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """Return seconds as people read them: ``1.25 s``, ``13.5 ms``, ``180 ns``."""
    if not math.isfinite(seconds):
        return str(seconds)
    for factor, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
