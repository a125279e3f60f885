# SPDX-License-Identifier: MIT
"""What must hold of the JSON reader, whatever arrives."""

from __future__ import annotations

from pysampler import Measurement
from pysampler.errors import FormatError


def check(data: bytes) -> None:
    """Refuse ``data`` by FormatError, or read it and write it so that it comes back the same."""
    try:
        measurement = Measurement.from_json(data)
    except FormatError as refusal:
        message = str(refusal)
    else:
        message = ""
        text = measurement.to_json()
        # By text, in which NaN under x-pysampler equals itself.
        assert Measurement.from_json(text).to_json() == text
        measurement.curve()
    assert "\n" not in message, "a refusal is one line"
