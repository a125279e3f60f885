# SPDX-License-Identifier: MIT
"""Helpers that all wrappers of the C core share."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pysampler._native import ffi

VfnArray = NDArray[np.uint64]
HashArray = NDArray[np.uint64]
StateArray = NDArray[np.uint8]
BitArray = NDArray[np.uint8]


def check(result: int, what: str) -> int:
    """Return a C function's result; raise OSError when it is -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def u64(array: NDArray[np.uint64], what: str, *, writable: bool = False) -> Any:
    """Return an array as a C pointer to uint64_t."""
    if array.dtype != np.uint64 or not array.flags.c_contiguous:
        raise TypeError(f"{what} must be a contiguous array of uint64")
    return ffi.from_buffer("uint64_t[]", array, require_writable=writable)


# What numpy calls the types of members.
_NUMPY_TYPES = {"double": "f8", "int32_t": "i4", "int64_t": "i8"}


def struct_dtype(name: str) -> np.dtype[Any]:
    """Return the layout of ``struct name``, as the compiler lays it out, as a numpy dtype.

    Raises:
        TypeError: a member is neither a double nor an integer of 32 or 64 bits.
    """
    struct = ffi.typeof(f"struct {name}")
    types = {member: field.type.cname for member, field in struct.fields}
    for member, ctype in types.items():
        if ctype not in _NUMPY_TYPES:
            raise TypeError(f"struct {name}: {member} is {ctype}, which has no numpy type here")
    return np.dtype(
        {
            "names": list(types),
            "formats": [_NUMPY_TYPES[ctype] for ctype in types.values()],
            "offsets": [field.offset for _, field in struct.fields],
            "itemsize": ffi.sizeof(struct),
        }
    )
