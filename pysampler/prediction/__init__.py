# SPDX-License-Identifier: MIT
"""From the vector to a migration: published and QEMU model, intervals, advice."""

from pysampler.prediction.precopy_model import Precopy
from pysampler.prediction.prediction import Cell, Prediction, predict

__all__ = ["Cell", "Precopy", "Prediction", "predict"]
