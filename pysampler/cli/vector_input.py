# SPDX-License-Identifier: MIT
"""Reading a vector that somebody else wrote, bounded."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from pysampler.errors import FormatError, PysamplerError, SourceError
from pysampler.measurement import MAX_JSON_BYTES, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Open a file to read, or stdin when ``name`` is ``-``.

    Raises:
        SourceError: it cannot be read, also by what is done with it.
    """
    try:
        if name == "-":
            if sys.stdin.isatty():
                raise SourceError("nothing on stdin: name a file, or pipe one in")
            yield sys.stdin.buffer
        else:
            with open(name, "rb") as file:
                yield file
    except OSError as error:
        raise SourceError(f"{_shown(name)}: {error.strerror or error}") from error


def read_text(name: str) -> bytes:
    """Return at most a few MiB of a file, or of stdin when ``name`` is ``-``.

    Raises:
        SourceError: it cannot be read.
        FormatError: it is longer than any vector.
    """
    with opened(name) as file:
        text = file.read(MAX_JSON_BYTES + 1)
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
