# SPDX-License-Identifier: MIT
"""Types of arguments: what argparse calls with a word of the command line.

argparse rewords a ValueError, and so a UsageError, and puts the verb's usage before it. Here the
message is what the user sees, so a type raises `RefusedArgumentError`, which argparse lets through.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, TypeVar

from pysampler.errors import PysamplerError, UsageError
from pysampler.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

Value = TypeVar("Value")


class RefusedArgumentError(PysamplerError):
    """The value of an argument is refused; the message names the argument and the cure."""

    exit_code = UsageError.exit_code


def checked(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return an argparse type of a function that raises UsageError."""

    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except UsageError as error:
            raise RefusedArgumentError(str(error)) from error

    return parsed


def whole_number(what: str, *, low: int, high: int) -> Callable[[str], int]:
    """Return the type of a whole number in decimal digits, from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or len(text) > 20:
            raise UsageError(f"{what} must be a whole number (got {text[:40]!r})")
        if not low <= int(text) <= high:
            raise UsageError(f"{what} must be between {low} and {high} (got {text})")
        return int(text)

    return checked(parse)


def integer(option: str, *, low: int, high: int, bounds: str) -> Callable[[str], int]:
    """Return the type of an integer as Python writes them; other words get argparse's message.

    Args:
        option: as the message names it, ``--vcpus``.
        low: the least.
        high: the most.
        bounds: both, as the message says them: ``from 1 to 255``.
    """

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from error
        if not low <= value <= high:
            raise UsageError(f"{option}: {value} is not {bounds}")
        return value

    return checked(parse)


def size(what: str) -> Callable[[str], int]:
    """Return the type of a size in bytes: ``4096``, ``16M``, ``4G``."""
    return checked(lambda text: parse_size(text, what))


def several(parse: Callable[[str], Value]) -> Callable[[str], list[Value]]:
    """Return the type of a list with commas between its values, of a function of one value."""
    return checked(lambda text: [parse(word) for word in text.split(",")])
