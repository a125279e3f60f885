# SPDX-License-Identifier: MIT
"""The tree of errors.

PysamplerError                    everything below; exit code 1 unless said otherwise
├── UsageError                    an argument out of range (exit code 2; also a ValueError)
├── SourceError                   the source cannot be sampled: no such process, an empty file
│   └── AccessError               the same for want of rights; the message names the cure
├── FormatError                   text that is not a vector, no guest's state, no migration's
│                                 stream; the message names the key
├── MissingFeatureError           a kernel feature or an optional package is not there
├── StateError                    the emulated guest is in a state in which that cannot be done
├── FaultError                    a RAMBlock vanished while it was read
└── MeasurementInterruptedError   a measurement ended early and carries what it has (exit code 3);
                                  in vector/interrupted.py, as it knows what a Measurement is
"""

from __future__ import annotations


class PysamplerError(Exception):
    """Base of all errors that pysampler raises on purpose."""

    exit_code = 1


class UsageError(PysamplerError, ValueError):
    """An argument is out of range, of a wrong type or not a number."""

    exit_code = 2


class SourceError(PysamplerError):
    """The named process, file or block cannot be sampled."""


class AccessError(SourceError):
    """The source exists, but this process may not read it."""


class FormatError(PysamplerError):
    """A text is not a vector, or bytes are no state of a guest and no migration's stream."""


class MissingFeatureError(PysamplerError):
    """This machine lacks a kernel feature, a library or an optional package."""


class StateError(PysamplerError):
    """The emulated guest is in a state in which that cannot be done."""


class FaultError(PysamplerError):
    """Memory of a RAMBlock went away while it was sampled.

    Attributes:
        idstr: the RAMBlock.
        vfn: the page that could not be read, or None when the whole block is gone.
    """

    def __init__(self, message: str, *, idstr: str, vfn: int | None = None) -> None:
        super().__init__(message)
        self.idstr = idstr
        self.vfn = vfn
