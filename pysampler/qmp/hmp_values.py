# SPDX-License-Identifier: MIT
"""Values that QEMU's human monitor reads from words: whole numbers, sizes, on and off."""

from __future__ import annotations

import re
from fractions import Fraction

from pysampler.qmp.wire.messages import QmpError

# As C reads them: hexadecimal, octal, decimal.
_INTEGER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]{1,18}|0[0-7]{0,24}|[1-9][0-9]{0,20})")
_SIZE = re.compile(r"([+-]?)([0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})([bBkKmMgGtTpPeE]?)")
_HEX_SIZE = re.compile(r"\+?(0[xX][0-9a-fA-F]{1,16})")
_SHIFTS = {suffix: 10 * power for power, suffix in enumerate("bkmgtpe")}
_SWITCH = {
    "on": True, "yes": True, "true": True, "y": True,
    "off": False, "no": False, "false": False, "n": False,
}  # fmt: skip


def unsigned(word: str, name: str, bits: int) -> int:
    """Return a whole number; a negative one stands for one of 64 bits.

    Raises:
        QmpError: it is none, or has more bits.
    """
    match = _INTEGER.fullmatch(word)
    if match is None:
        raise QmpError(f"Parameter '{name}' expects uint64")
    digits = match[2]
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    value = int(digits, base)
    if value >> 64:
        raise QmpError(f"Parameter '{name}' expects uint64")
    value = (-value if match[1] == "-" else value) % (1 << 64)
    if value >> bits:
        raise QmpError(f"Parameter '{name}' expects uint{bits}_t")
    return value


def size(word: str, name: str) -> int:
    """Return a number with or without one of the suffixes B, K, M, G, T, P, E: powers of 1024.

    Raises:
        QmpError: it is none.
    """
    value = _size(word, "b")
    if value is None:
        raise QmpError(
            f"Parameter '{name}' expects a non-negative number below 2^64\n"
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
            "and exabytes, respectively."
        )
    if not 0 <= value < 1 << 64:
        raise QmpError(f"Value '{word}' is out of range for parameter '{name}'")
    return value


def size_in_mib(word: str) -> int:
    """Return the bytes of a size that is in MiB where it has no suffix.

    Raises:
        QmpError: it is none.
    """
    value = _size(word, "m")
    if value is None or not 0 <= value < 1 << 63:
        raise QmpError(f"Invalid size {word}")
    return value


def _size(word: str, unit: str) -> int | None:
    if match := _HEX_SIZE.fullmatch(word):
        return int(match[1], 16) << _SHIFTS[unit]
    match = _SIZE.fullmatch(word)
    if match is None:
        return None
    shift = _SHIFTS[match[3].lower() or unit]
    if shift == 0 and "." in match[2]:
        return None  # there are no parts of a byte
    value = (
        int(Fraction(f"0{match[2]}0") * (1 << shift))
        if "." in match[2]
        else (int(match[2]) << shift)
    )
    return -value if match[1] == "-" else value


def switch(word: str, name: str) -> bool:
    """Return whether a word says on or off.

    Raises:
        QmpError: it says neither.
    """
    if word not in _SWITCH:
        raise QmpError(f"Parameter '{name}' expects 'on' or 'off'")
    return _SWITCH[word]
