# SPDX-License-Identifier: MIT
"""Signals that end a measurement, but take neither its vector nor its exit code."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from typing_extensions import Self

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndingSignals:
    """While it is entered, SIGINT, SIGTERM and SIGHUP interrupt only code within `interrupting`.

    Only the first signal counts. Later ones are ignored until the process ends, because it is
    ending already; but within `leaving`, they interrupt. A signal that was ignored before, as
    SIGHUP is under nohup, stays ignored.

    Attributes:
        received: whether a signal has come.
    """

    def __init__(self) -> None:
        self._handlers: dict[signal.Signals, Any] = {}
        self.received = False
        self._interrupting = False
        self._leaving = False

    def _receive(self, *_: object) -> None:
        is_first, self.received = not self.received, True
        if self._interrupting if is_first else self._leaving:
            raise KeyboardInterrupt

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal raise KeyboardInterrupt, also one that came before."""
        self._interrupting = True
        try:
            if self.received:
                raise KeyboardInterrupt
            yield
        finally:
            self._interrupting = False

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """Let a signal after the first one raise KeyboardInterrupt."""
        self._leaving = True
        try:
            yield
        finally:
            self._leaving = False

    def check(self) -> None:
        """Raise KeyboardInterrupt for a signal whose exception was discarded.

        Python discards exceptions in the callback of a weak reference, and each thread has one.
        Some modules discard exceptions while they are imported.
        """
        if self.received and self._interrupting:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        for number in _ENDING:
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                self._handlers[number] = handler
                signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            # By the kernel: Python's own handlers end before the process does. Not in a handler:
            # Python complains of a signal that was on its way when it came to be ignored.
            signal.signal(number, signal.SIG_IGN if self.received else handler)
