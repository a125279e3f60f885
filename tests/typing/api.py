"""The public API as a type checker sees it; never executed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import pysampler

measurement: pysampler.Measurement = pysampler.Measurement.from_json("{}")
text: str = measurement.to_json()
rate: int | None = measurement.dirty_rate
low: NDArray[np.float64] = measurement.curve().low
prediction: pysampler.Prediction = pysampler.predict(measurement, "1Gbps", [300, None], link=1e9)
total_ms: float | None = prediction.cells[0].total_ms
p_converge: float = prediction.cells[0].p_converge
