# SPDX-License-Identifier: MIT
"""Read a vector from a file or stdin, of bounded length."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from pysampler.cli.pasted import measurements_in
from pysampler.cli.streams import say
from pysampler.errors import FormatError, PysamplerError, SourceError
from pysampler.prediction.silent import silent_writers
from pysampler.prediction.unreadable import unreadable_remark
from pysampler.vector.measurement import MAX_JSON_BYTES, Measurement

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Open a file to read, or stdin when ``name`` is ``-``.

    Raises:
        SourceError: it cannot be read, here or within the block.
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


def read_vector(name: str, verb: str) -> Measurement:
    """Return the vector in a file or on stdin, the last of several; errors name it.

    Warnings about the vector go to stderr.
    """
    text = read_text(name)
    try:
        pasted = measurements_in(text)
        if not pasted.vectors and pasted.replies:
            raise FormatError(
                "periods: missing, as in QEMU's reply to query-dirty-rate, `info dirty_rate` and"
                " virsh; of that only `pysampler advise --quick` can tell something"
            )
        vector = Measurement.from_dict(pasted.vectors[-1] if pasted.vectors else pasted.last)
    except FormatError as error:
        raise with_name(name, error) from error
    for remark in (silent_writers(vector, pasted.vectors[:-1]), unreadable_remark(vector)):
        if remark:
            say(verb, remark)
    return vector


def with_name(name: str, error: PysamplerError) -> PysamplerError:
    """Return the error with the vector's name before its message."""
    return type(error)(f"{_shown(name)}: {error}")


def _shown(name: str) -> str:
    return "stdin" if name == "-" else name or "''"
