# SPDX-License-Identifier: MIT
"""Measure how a guest dirties its memory, from outside, and say what a migration will do."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from pysampler.version import __version__

if TYPE_CHECKING:
    from pysampler.errors import (
        AccessError,
        FaultError,
        FormatError,
        MissingFeatureError,
        PysamplerError,
        SourceError,
        UsageError,
    )
    from pysampler.measuring import measure, sample, track
    from pysampler.memory.ramblock import RAMBlock
    from pysampler.memory.source import (
        buffer_block,
        file_block,
        find_blocks,
        named_block,
        process_fd_block,
    )
    from pysampler.prediction import Cell, Precopy, Prediction, predict
    from pysampler.sampling.sampler import Sampler
    from pysampler.vector.interrupted import MeasurementInterruptedError
    from pysampler.vector.measurement import Curve, Measurement, Mode, Status

# The public surface; what is not in this list may change freely.
__all__ = [
    "AccessError",
    "Cell",
    "Curve",
    "FaultError",
    "FormatError",
    "Measurement",
    "MeasurementInterruptedError",
    "MissingFeatureError",
    "Mode",
    "Precopy",
    "Prediction",
    "PysamplerError",
    "RAMBlock",
    "Sampler",
    "SourceError",
    "Status",
    "UsageError",
    "__version__",
    "buffer_block",
    "file_block",
    "find_blocks",
    "measure",
    "named_block",
    "predict",
    "process_fd_block",
    "sample",
    "track",
]

if not TYPE_CHECKING:
    # Imported when it is first used: the command line is part of this package, and answers Ctrl-C
    # from its first line on, not after half a second of imports.
    _HOMES = (
        "errors",
        "vector.interrupted",
        "vector.measurement",
        "prediction",
        "memory.ramblock",
        "sampling.sampler",
        "memory.source",
        "measuring",
    )

    def __getattr__(name: str) -> object:
        if name in __all__:
            for home in _HOMES:
                module = importlib.import_module(f"pysampler.{home}")
                if hasattr(module, name):
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module 'pysampler' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return __all__
