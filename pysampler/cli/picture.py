# SPDX-License-Identifier: MIT
"""--plot: a figure of matplotlib in a file that appears whole or not at all."""

from __future__ import annotations

import io
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pysampler.cli.output import Output
from pysampler.cli.signals import EndingSignals
from pysampler.errors import MissingFeatureError, UsageError
from pysampler.host.figures import load_matplotlib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.figure import Figure

# Dates that matplotlib would put in: the same figure gives the same bytes.
_METADATA: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None},
    ".png": {},
    ".pdf": {"CreationDate": None},
}


@contextmanager
def picture_file(path: str | None) -> Iterator[Callable[[Figure], None] | None]:
    """Yield a function that saves a figure in a file; None where no picture was asked for.

    A file that cannot be written is reported at once, before a minute of measuring.

    Args:
        path: the file, whose ending is the format.

    Raises:
        UsageError: the ending is none of those that are drawn.
        MissingFeatureError: matplotlib is not there.
        PysamplerError: the file cannot be written.
    """
    if path is None:
        yield None
        return
    ending = _ending_of(path)
    with EndingSignals() as signals, Output(path) as output, signals.interrupting():
        yield lambda figure: output.write_bytes(_rendered(figure, ending))


def _ending_of(path: str) -> str:
    for ending in _METADATA:
        if path.lower().endswith(ending):
            break
    else:
        raise UsageError(f"plot: {path!r} ends in none of {', '.join(_METADATA)}")
    if find_spec("matplotlib") is None:
        raise MissingFeatureError("a plot needs matplotlib: pip install pysampler[plot]")
    load_matplotlib()
    return ending


def _rendered(figure: Figure, ending: str) -> bytes:
    from matplotlib import rc_context  # noqa: PLC0415 - an extra

    picture = io.BytesIO()
    with rc_context({"svg.hashsalt": "pysampler"}):
        figure.savefig(picture, format=ending[1:], metadata=_METADATA[ending])
    return picture.getvalue()
