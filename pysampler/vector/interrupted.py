# SPDX-License-Identifier: MIT
"""The error that carries a measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pysampler.errors import PysamplerError

if TYPE_CHECKING:
    from pysampler.vector.measurement import Measurement


class MeasurementInterruptedError(PysamplerError):
    """A measurement ended before its last period.

    Attributes:
        measurement: the periods measured so far, status ``measuring``; None when
            not even the baseline pass was complete.
    """

    exit_code = 3

    def __init__(self, message: str, measurement: Measurement | None) -> None:
        super().__init__(message)
        self.measurement = measurement
