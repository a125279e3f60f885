# SPDX-License-Identifier: MIT
"""What is said on stderr, and the end of stdout."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from pysampler.errors import PysamplerError
from pysampler.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterator


STDOUT = "standard output"


def say(verb: str, text: str) -> None:
    """Tell the user one line; a stderr that is gone takes no result with it."""
    with contextlib.suppress(OSError):
        print(f"pysampler {verb}: {printable(text)}", file=sys.stderr)


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """Name in an error what could not be written.

    Raises:
        BrokenPipeError: nobody reads it any more.
        PysamplerError: it could not be written.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PysamplerError(f"cannot write {name}: {error.strerror or error}") from error


def put(text: str, end: str = "\n") -> None:
    """Print data on stdout at once; errors as of `writing`."""
    with writing(STDOUT):
        print(text, end=end, flush=True)


def discard_stdout() -> None:
    """Let what could not be written go to /dev/null, that the interpreter's exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
