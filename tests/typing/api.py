"""The public API as a type checker sees it; never executed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import pysampler

measurement: pysampler.Measurement = pysampler.Measurement.from_json("{}")
text: str = measurement.to_json()
rate: int | None = measurement.dirty_rate
low: NDArray[np.float64] = measurement.curve().low
