# SPDX-License-Identifier: MIT
"""Lines on stderr, and data on stdout."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

from pysampler.errors import PysamplerError
from pysampler.host.writer import writing
from pysampler.printable import printable

STDOUT = "standard output"

_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
_MOST_OF_AN_ERROR = 400  # characters of an error that nobody foresaw


def one_line(error: Exception) -> str:
    """Return the one line for an error; for an unforeseen one it names --debug."""
    text = str(error)
    if isinstance(error, MemoryError):
        return text or "not enough memory"
    if not isinstance(error, (PysamplerError, OSError)):
        shown = " ".join(text.split())[:_MOST_OF_AN_ERROR]
        return f"internal error: {type(error).__name__}: {shown}; --debug shows where"
    if "ulimit -n" in text:
        return text
    causes = (error, error.__cause__)  # ours says what could not be done, its cause why
    if any(isinstance(cause, OSError) and cause.errno in _NO_DESCRIPTOR for cause in causes):
        return f"{text}; no descriptor is left: close some, or raise `ulimit -n`"
    return text or type(error).__name__


def say(verb: str, text: str) -> None:
    """Print one line for the user; a broken stderr does not end the command."""
    with contextlib.suppress(OSError):
        print(f"pysampler {verb}".rstrip() + f": {printable(text)}", file=sys.stderr)


def put(text: str, end: str = "\n") -> None:
    """Print data on stdout at once; errors as of `writing`."""
    with writing(STDOUT):
        print(text, end=end, flush=True)


def discard_stdout() -> None:
    """Send unwritten output to /dev/null, so that the interpreter's exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
