# SPDX-License-Identifier: MIT
"""The types of commands' arguments as data, each of which checks its values in QEMU's words.

The words were learned from a real QEMU 10.0.2: tests/golden/qmp-argument-errors.jsonl.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from pysampler.qmp.wire.messages import QmpError

if TYPE_CHECKING:
    from collections.abc import Mapping

_INT64 = range(-(1 << 63), 1 << 63)
_UINT64 = range(1 << 64)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands.

    Attributes:
        path: ``capabilities[0].state``.
        name: the last part of it alone, ``state``; some of QEMU's texts have only that. An item of
            an array has none: QEMU prints ``null`` for it.
    """

    path: str = ""
    name: str = ""

    def member(self, name: str) -> Place:
        """Return the place of a member of the object that stands here."""
        return Place(f"{self.path}.{name}" if self.path else name, name)

    def item(self, index: int) -> Place:
        """Return the place of an item of the array that stands here."""
        return Place(f"{self.path}[{index}]", "null")


class Type(Protocol):
    """The type of a value."""

    def check(self, value: Any, where: Place) -> Any:
        """Return a value as the command gets it.

        Raises:
            QmpError: the first thing that is wrong with it.
        """


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false."""

    def check(self, value: Any, where: Place) -> bool:
        """Return a value as the command gets it."""
        if type(value) is not bool:
            raise _wrong_type(where, "boolean")
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A floating-point number; integers are numbers, too."""

    def check(self, value: Any, where: Place) -> float:
        """Return a value as the command gets it."""
        if type(value) not in (int, float):
            raise _wrong_type(where, "number")
        return float(value)


@dataclass(frozen=True, slots=True)
class Integer:
    """A signed integer of 64 bits."""

    def check(self, value: Any, where: Place) -> int:
        """Return a value as the command gets it."""
        if type(value) is not int or value not in _INT64:
            raise _wrong_type(where, "integer")
        return value


@dataclass(frozen=True, slots=True)
class Unsigned:
    """An unsigned integer. As in QEMU, -1 stands for the largest one of 64 bits, and so on.

    Attributes:
        bits: its width.
    """

    bits: int = 64

    def check(self, value: Any, where: Place) -> int:
        """Return a value as the command gets it."""
        if type(value) is not int or (value not in _UINT64 and value not in _INT64):
            raise QmpError(f"Parameter '{where.path}' expects uint64")
        unsigned: int = value % (1 << 64)
        if unsigned >> self.bits:
            raise QmpError(f"Parameter '{where.name}' expects uint{self.bits}_t")
        return unsigned


@dataclass(frozen=True, slots=True)
class String:
    """A string."""

    def check(self, value: Any, where: Place) -> str:
        """Return a value as the command gets it."""
        if type(value) is not str:
            raise _wrong_type(where, "string")
        return value


@dataclass(frozen=True, slots=True)
class StringOrNull:
    """A string; null stands for an empty one."""

    def check(self, value: Any, where: Place) -> str:
        """Return a value as the command gets it."""
        if value is not None and type(value) is not str:
            raise _wrong_type(where, "StrOrNull")
        return value or ""


@dataclass(frozen=True, slots=True)
class Enum:
    """One of several strings.

    Attributes:
        values: the strings.
    """

    values: tuple[str, ...]

    def check(self, value: Any, where: Place) -> str:
        """Return a value as the command gets it."""
        if type(value) is not str:
            raise _wrong_type(where, "string")
        if value not in self.values:
            raise QmpError(f"Parameter '{where.name}' does not accept value '{value}'")
        return value


@dataclass(frozen=True, slots=True)
class Array:
    """A list of values of one type.

    Attributes:
        item: that type.
    """

    item: Type

    def check(self, value: Any, where: Place) -> list[Any]:
        """Return a value as the command gets it."""
        if type(value) is not list:
            raise _wrong_type(where, "array")
        return [self.item.check(item, where.item(i)) for i, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an object.

    Attributes:
        name: as in JSON.
        type: of its value.
        optional: whether it may be left out.
    """

    name: str
    type: Type
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Struct:
    """An object.

    Attributes:
        members: those that it may have.
        branches: the members that it has besides, by the value of the first member.
    """

    members: tuple[Member, ...]
    branches: Mapping[str, Struct] = field(default_factory=dict)

    def check(self, value: Any, where: Place) -> dict[str, Any]:
        """Return a value as the command gets it."""
        if type(value) is not dict:
            raise _wrong_type(where, "object")
        checked = self.check_members(value, where)
        for name in value:
            if name not in checked:
                raise QmpError(f"Parameter '{where.member(name).path}' is unexpected")
        return checked

    def check_members(self, given: Mapping[str, Any], where: Place) -> dict[str, Any]:
        """Return the members that an object of this type has, without looking for others."""
        checked = {}
        for member in self.members:
            place = where.member(member.name)
            if member.name in given:
                checked[member.name] = member.type.check(given[member.name], place)
            elif not member.optional:
                raise QmpError(f"Parameter '{place.path}' is missing")
        if self.branches:
            checked |= self.branches[checked[self.members[0].name]].check_members(given, where)
        return checked


def check_arguments(members: tuple[Member, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command as it gets them.

    The order of the checks is QEMU's: each member of the schema in turn, missing or of a wrong
    type or value, then the first one that is not in the schema. An object within is checked whole
    before the next member.

    Raises:
        QmpError: the first thing that is wrong.
    """
    return Struct(members).check(given, Place())


def _wrong_type(where: Place, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{where.path}', expected: {expected}")
