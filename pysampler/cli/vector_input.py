# SPDX-License-Identifier: MIT
"""Reading a vector that somebody else wrote, bounded."""

from __future__ import annotations

import sys

from pysampler.errors import FormatError, PysamplerError, SourceError
from pysampler.measurement import MAX_JSON_BYTES, Measurement


def read_text(name: str) -> bytes:
    """Return at most a few MiB of a file, or of stdin when ``name`` is ``-``.

    Raises:
        SourceError: it cannot be read.
        FormatError: it is longer than any vector.
    """
    try:
        if name == "-":
            if sys.stdin.isatty():
                raise SourceError("no vector: name a file, or pipe one in")
            text = sys.stdin.buffer.read(MAX_JSON_BYTES + 1)
        else:
            with open(name, "rb") as file:
                text = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{_shown(name)}: {error.strerror or error}") from error
    if len(text) > MAX_JSON_BYTES:
        raise FormatError(
            f"{_shown(name)}: longer than {MAX_JSON_BYTES >> 20} MiB, so not a vector"
        )
    return text


def read_vector(name: str) -> Measurement:
    """Return the vector in a file or on stdin; errors name it."""
    text = read_text(name)
    try:
        return Measurement.from_json(text)
    except FormatError as error:
        raise FormatError(f"{_shown(name)}: {error}") from error


def with_name(name: str, error: PysamplerError) -> PysamplerError:
    """Return the error with the vector's name before its message."""
    return type(error)(f"{_shown(name)}: {error}")


def _shown(name: str) -> str:
    return "stdin" if name == "-" else name or "''"
