# SPDX-License-Identifier: MIT
"""The parameters and capabilities of a guest's migrations, as they are set now."""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import TYPE_CHECKING

from pysampler.errors import StateError
from pysampler.qemu.migration import (
    CAPABILITIES,
    DIRTY_RING,
    PARAMETERS,
    REPORTED_ORDER,
    ParameterType,
    Value,
    capability_error,
    range_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Setting = Value | float

# Beside QEMU's: the capability of its own that makes a migration converge (aggressionLevel), and
# the share of the guest's time that it takes, from 0 to 1; whether its break-even averages the
# samples' ratios or is a ratio of averages; which dirty-limit is meant, the merged one or that of
# 2021.
AGGRESSION = "x-aggression"
AGGRESSION_LEVEL = "x-aggression-level"
AGGRESSION_RATIO = "x-aggression-ratio"
AGGRESSION_RATIOS = ("samples", "averages")
DIRTY_LIMIT_METHOD = "x-dirty-limit-method"
DIRTY_LIMIT_METHODS = ("merged", "v1")

# At 0 a migration only just makes progress, and at 1 the guest stands still.
OWN_PARAMETERS: Mapping[str, Setting] = MappingProxyType(
    {
        AGGRESSION_LEVEL: 0.5,
        AGGRESSION_RATIO: AGGRESSION_RATIOS[0],
        DIRTY_LIMIT_METHOD: DIRTY_LIMIT_METHODS[0],
    }
)
_OWN_CAPABILITIES = (AGGRESSION,)
# Two of them would both slow the same vCPUs.
_ONE_AT_A_TIME = ("auto-converge", "dirty-limit")

# What QEMU takes and the guest cannot do: each would need another stream, or other ways to send.
_LACKING = frozenset(
    {
        "xbzrle", "x-colo", "multifd", "x-ignore-shared", "background-snapshot", "zero-copy-send",
        "mapped-ram", "postcopy-ram", "postcopy-preempt",
    }
)  # fmt: skip
# The only value of these parameters that the guest has. The others are of what it lacks, or do
# nothing in QEMU either.
_ONLY_VALUES: Mapping[str, Value] = MappingProxyType({"mode": "normal", "tls-creds": ""})
# Zero pages are always found. QEMU without multifd takes these two for the same.
_ZERO_PAGE_DETECTION = ("legacy", "multifd")


class Settings:
    """All parameters and capabilities. Any thread may use it.

    Args:
        has_ring: whether the vCPUs have dirty rings, which the capability dirty-limit needs.
    """

    def __init__(self, has_ring: bool) -> None:
        self._has_ring = has_ring
        self._lock = threading.Lock()
        # Both are replaced as a whole, so a reader needs no lock.
        self._parameters: dict[str, Setting] = {
            **{name: parameter.default for name, parameter in PARAMETERS.items()},
            **OWN_PARAMETERS,
        }
        self._enabled: frozenset[str] = frozenset()

    def set_parameters(self, given: Mapping[str, Setting]) -> None:
        """Set some parameters: all of them, or none when one is refused.

        Args:
            given: name -> value, each of its parameter's type. A negative number stands for one of
                64 bits, as in QMP: -1 for the largest.

        Raises:
            StateError: a value is out of its bounds; the text is QEMU's.
        """
        for name in given:
            if name not in self._parameters:
                raise StateError(f"Parameter '{name}' is unexpected")
        with self._lock:
            values = dict(self._parameters)
            for name, value in given.items():
                values[name] = _unsigned(name, value)
            error = range_error(values) or _own_range_error(values)
            if error is not None:
                raise StateError(error)
            self._parameters = values

    def set_capabilities(self, given: Iterable[tuple[str, bool]]) -> None:
        """Switch some capabilities: all of them, or none when one is refused.

        Args:
            given: their names, each with whether it is to be on. The last one of a name counts.

        Raises:
            StateError: they do not go together, or do not go without a dirty ring; the text is
                QEMU's.
        """
        with self._lock:
            enabled = set(self._enabled)
            for name, state in given:
                if name not in CAPABILITIES and name not in _OWN_CAPABILITIES:
                    raise StateError(f"Parameter 'capability' does not accept value '{name}'")
                if state:
                    enabled.add(name)
                else:
                    enabled.discard(name)
            ring = {DIRTY_RING} if self._has_ring else set()
            error = capability_error(enabled | ring) or _own_capability_error(enabled)
            if error is not None:
                raise StateError(error)
            self._enabled = frozenset(enabled)

    def check_supported(self) -> None:
        """Make sure that the guest can migrate as it is set.

        Raises:
            StateError: QEMU takes a capability or a parameter that the guest lacks.
        """
        enabled, parameters = self._enabled, self._parameters
        for name in CAPABILITIES:
            if name in enabled & _LACKING:
                raise StateError(
                    f"an emulated guest cannot migrate with capability '{name}'; switch it off"
                )
        for name, only in _ONLY_VALUES.items():
            if parameters[name] != only:
                raise StateError(
                    f"an emulated guest cannot migrate with parameter '{name}'; set it to '{only}'"
                )
        if parameters["zero-page-detection"] not in _ZERO_PAGE_DETECTION:
            raise StateError(
                "an emulated guest always looks for zero pages; set parameter "
                "'zero-page-detection' to 'multifd'"
            )

    def number(self, name: str) -> int:
        """Return the value of a parameter that is an integer, in its unit in QEMU."""
        return int(self._parameters[name])

    def value(self, name: str) -> Setting:
        """Return the value of a parameter."""
        return self._parameters[name]

    def enabled(self, capability: str) -> bool:
        """Return whether a capability is on."""
        return capability in self._enabled

    def parameters(self) -> dict[str, Setting]:
        """Return the reply to query-migrate-parameters.

        QEMU's come in its order. Those of our own follow once they differ from their defaults.
        """
        now = self._parameters
        own = {name: now[name] for name, default in OWN_PARAMETERS.items() if now[name] != default}
        return {name: now[name] for name in REPORTED_ORDER} | own

    def capabilities(self) -> list[dict[str, str | bool]]:
        """Return the reply to query-migrate-capabilities.

        QEMU's come in its order. Those of our own follow once they are on.
        """
        enabled = self._enabled
        shown = CAPABILITIES + tuple(name for name in _OWN_CAPABILITIES if name in enabled)
        return [{"state": name in enabled, "capability": name} for name in shown]


def _unsigned(name: str, value: Setting) -> Setting:
    type_ = PARAMETERS[name].type if name in PARAMETERS else None
    if type_ in (ParameterType.UINT64, ParameterType.SIZE):
        return int(value) % (1 << 64)
    return value


def _own_range_error(values: Mapping[str, Setting]) -> str | None:
    if not 0 <= float(values[AGGRESSION_LEVEL]) <= 1:
        return f"Parameter '{AGGRESSION_LEVEL}' expects a number in the range of 0 to 1"
    for name, words in (
        (AGGRESSION_RATIO, AGGRESSION_RATIOS),
        (DIRTY_LIMIT_METHOD, DIRTY_LIMIT_METHODS),
    ):
        if values[name] not in words:
            return f"Parameter '{name}' does not accept value '{values[name]}'"
    return None


def _own_capability_error(enabled: set[str]) -> str | None:
    for other in _ONE_AT_A_TIME:
        if AGGRESSION in enabled and other in enabled:
            return f"{AGGRESSION} conflicts with {other}: only one of them can be on"
    return None
