# SPDX-License-Identifier: MIT
"""Parameters and capabilities of a migration, as words of the command line set them."""

from __future__ import annotations

import difflib
import math
import re
from typing import TYPE_CHECKING

from pysampler.errors import UsageError
from pysampler.migration.settings import OWN_PARAMETERS
from pysampler.prediction.prediction import as_limit_ms, as_rate
from pysampler.qemu.migration import MOST_DOWNTIME_MS, PARAMETERS, ParameterType
from pysampler.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}", re.ASCII)
_FLAGS = {"on": True, "true": True, "off": False, "false": False}


def max_bandwidth(text: str) -> int:
    """Return the whole bytes a second of a rate.

    Raises:
        UsageError: it is none.
    """
    return max(1, round(as_rate(text)))


def downtime_limit(text: str) -> int:
    """Return a downtime-limit in whole ms; ``unlimited`` is the most that QEMU takes.

    Raises:
        UsageError: it is none.
    """
    ms = as_limit_ms(text)
    if ms is None:
        return MOST_DOWNTIME_MS
    if ms != math.floor(ms):
        raise UsageError(f"downtime: {text!r} is no whole number of ms, which QEMU wants")
    return int(ms)


def capability(text: str) -> tuple[str, bool]:
    """Return the name of ``NAME``, ``NAME=on`` or ``NAME=off``, and whether it is to be on.

    Raises:
        UsageError: it is none of them.
    """
    name, equals, state = text.partition("=")
    if _NAME.fullmatch(name) is None or (equals and state not in _FLAGS):
        raise UsageError(f"--capability: {text[:40]!r} is not NAME, NAME=on or NAME=off")
    return name, _FLAGS[state] if equals else True


def parameter(text: str) -> tuple[str, str]:
    """Return name and value of ``NAME=VALUE``.

    Raises:
        UsageError: it is not that.
    """
    name, equals, value = text.partition("=")
    if not equals or _NAME.fullmatch(name) is None:
        raise UsageError(f"--parameter: {text[:40]!r} is not NAME=VALUE, as max-cpu-throttle=80 is")
    return name, value


def typed(name: str, text: str, reported: Mapping[str, Any]) -> int | float | bool | str:
    """Return the value of a parameter as QMP takes it.

    Args:
        name: of the parameter.
        text: its value. Bandwidths are rates, other sizes have units, the rest is as in QMP.
        reported: the source's own parameters. They tell the types of those that are not known here.

    Raises:
        UsageError: the source has no such parameter, or the value is not of its type.
    """
    known = PARAMETERS.get(name)
    if known is None:
        return _of_same_type(name, text, reported)
    what = f"parameter {name}"
    if known.type is ParameterType.SIZE:
        if not name.endswith("-bandwidth"):
            return parse_size(text, what)
        return 0 if text == "0" else max(1, round(as_rate(text, what)))  # 0: unlimited
    if known.type is ParameterType.BOOL:
        return _flag(what, text)
    if known.type in (ParameterType.UINT8, ParameterType.UINT64):
        return _whole(what, text)
    return text


def _of_same_type(name: str, text: str, reported: Mapping[str, Any]) -> int | float | bool | str:
    # An emulated guest reports its own parameters only once they were set.
    value = {**OWN_PARAMETERS, **reported}.get(name)
    what = f"parameter {name}"
    if isinstance(value, bool):
        return _flag(what, text)
    if isinstance(value, int):
        return _whole(what, text)
    if isinstance(value, float):
        try:
            return float(text)
        except ValueError:
            raise UsageError(f"{what}: {text[:40]!r} is not a number") from None
    if isinstance(value, str):
        return text
    near = difflib.get_close_matches(name, {*PARAMETERS, *OWN_PARAMETERS, *map(str, reported)}, n=1)
    cure = f"did you mean {near[0]}?" if near else "query-migrate-parameters lists them"
    raise UsageError(f"--parameter: the source has no {name!r}; {cure}")


def _flag(what: str, text: str) -> bool:
    if text not in _FLAGS:
        raise UsageError(f"{what}: {text[:40]!r} is not on or off")
    return _FLAGS[text]


def _whole(what: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 20:
        raise UsageError(f"{what}: {text[:40]!r} is not a whole number")
    return int(text)
