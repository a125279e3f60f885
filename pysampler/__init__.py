# SPDX-License-Identifier: MIT
"""Measure how a guest dirties its memory, from outside, and say what a migration will do."""

from pysampler.errors import (
    AccessError,
    FaultError,
    FormatError,
    MeasurementInterruptedError,
    MissingFeatureError,
    PysamplerError,
    SourceError,
    UsageError,
)
from pysampler.measurement import Curve, Measurement, Mode, Status
from pysampler.prediction import Cell, Precopy, Prediction, predict
from pysampler.ramblock import RAMBlock
from pysampler.sampler import Sampler, measure, sample
from pysampler.source import (
    buffer_block,
    file_block,
    find_blocks,
    named_block,
    process_fd_block,
)
from pysampler.tracking import track
from pysampler.version import __version__

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
