# SPDX-License-Identifier: MIT
"""Measure how a guest dirties its memory, from outside, and say what a migration will do."""

from pysampler.errors import PysamplerError
from pysampler.measurement import Curve, Measurement, Mode, Status

__version__ = "0.1.0"

# The public surface; what is not in this list may change freely.
__all__ = [
    "Curve",
    "Measurement",
    "Mode",
    "PysamplerError",
    "Status",
]
