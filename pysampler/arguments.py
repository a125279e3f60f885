# SPDX-License-Identifier: MIT
"""Checks of the Python API's arguments, whose types are not those of a command line."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any, TypeGuard

import numpy as np

from pysampler.errors import UsageError


def as_whole_number(value: Any, what: str) -> int:
    """Return an int for any whole number, also one of numpy's.

    Raises:
        UsageError: it is none; text and bool are none either.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise UsageError(f"{what} must be a whole number (got {repr(value)[:40]})") from None


def is_real(value: Any) -> TypeGuard[float]:
    """Return whether a value is a real number, also one of numpy's; bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)
