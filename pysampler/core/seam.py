# SPDX-License-Identifier: MIT
"""What all wrappers of the C core share."""

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
    """Return what a C function returned; raise OSError when it is -errno."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result


def u64(array: NDArray[np.uint64], what: str, *, writable: bool = False) -> Any:
    """Return an array as a C pointer to uint64_t."""
    if array.dtype != np.uint64 or not array.flags.c_contiguous:
        raise TypeError(f"{what} must be a contiguous array of uint64")
    return ffi.from_buffer("uint64_t[]", array, require_writable=writable)
