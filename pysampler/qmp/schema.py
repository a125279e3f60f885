# SPDX-License-Identifier: MIT
"""The types of commands' arguments as data, and the one function that checks them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pysampler.qmp.wire.messages import QmpError

if TYPE_CHECKING:
    from collections.abc import Mapping

_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a command.

    Attributes:
        name: as in JSON.
        type: ``integer`` (64 bits, signed), ``string``, or ``array`` of strings.
        optional: whether it may be left out.
        values: what a string may be, when it is an enum.
    """

    name: str
    type: Literal["integer", "string", "array"]
    optional: bool = False
    values: tuple[str, ...] | None = None


def check_arguments(arguments: tuple[Argument, ...], given: Mapping[str, Any]) -> None:
    """Refuse arguments that a command does not take, in QEMU's words and order.

    That order is: each argument of the schema in turn, missing or of a wrong type or
    value, then the first one that is not in the schema.

    Raises:
        QmpError: the first thing that is wrong.
    """
    for argument in arguments:
        if argument.name in given:
            _check(argument.name, argument, given[argument.name])
        elif not argument.optional:
            raise QmpError(f"Parameter '{argument.name}' is missing")
    known = {argument.name for argument in arguments}
    for name in given:
        if name not in known:
            raise QmpError(f"Parameter '{name}' is unexpected")


def _check(name: str, argument: Argument, value: Any) -> None:
    if argument.type == "array" and isinstance(value, list):
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise _wrong_type(f"{name}[{i}]", "string")
            # QEMU does not know the name of an array's item here.
            _check_value("null", argument, item)
    elif argument.type == "string" and isinstance(value, str):
        _check_value(name, argument, value)
    elif argument.type != "integer" or type(value) is not int or value not in _INT64:
        raise _wrong_type(name, argument.type)


def _wrong_type(name: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{name}', expected: {expected}")


def _check_value(name: str, argument: Argument, value: str) -> None:
    if argument.values is not None and value not in argument.values:
        raise QmpError(f"Parameter '{name}' does not accept value '{value}'")
