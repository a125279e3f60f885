# SPDX-License-Identifier: MIT
"""Pre-copy as QEMU runs it, for many guests and settings at once."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler._native import ffi, lib
from pysampler.core.seam import check, struct_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray


PRECOPY_COMPONENT = struct_dtype("ps_precopy_component")
PRECOPY_GUEST = struct_dtype("ps_precopy_guest")
PRECOPY_CELL = struct_dtype("ps_precopy_cell")
PRECOPY_OUTCOME = struct_dtype("ps_precopy_outcome")
PRECOPY_ROUND = struct_dtype("ps_precopy_round")

PRECOPY_COMPONENTS: int = lib.PS_PRECOPY_COMPONENTS

_GUESTS_AT_ONCE = 16


class ComponentKind(enum.IntEnum):
    """How the pages of a component are written."""

    RANDOM = lib.PS_COMPONENT_RANDOM
    SEQUENTIAL = lib.PS_COMPONENT_SEQUENTIAL
    TABLE = lib.PS_COMPONENT_TABLE


def _structs(array: NDArray[Any], name: str, dtype: np.dtype[Any]) -> Any:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"struct {name}: a contiguous array of its dtype is needed")
    return ffi.from_buffer(f"struct {name}[]", array)


def _doubles(array: NDArray[np.float64], what: str) -> Any:
    if array.dtype != np.float64 or not array.flags.c_contiguous or not np.isfinite(array).all():
        raise TypeError(f"{what} must be a contiguous array of finite float64")
    return ffi.from_buffer("double[]", array)


@dataclass(frozen=True, slots=True, eq=False)
class PrecopyGuests:
    """Guests as the C core takes them; see struct ps_precopy_guests.

    Attributes:
        guests: PRECOPY_GUEST, shape [guests].
        components: PRECOPY_COMPONENT, shape [guests, components].
        knots_ms: shape [knots].
        knots_share: shape [guests, knots].
    """

    guests: NDArray[Any]
    components: NDArray[Any]
    knots_ms: NDArray[np.float64]
    knots_share: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse arrays of another shape."""
        n_guests = len(self.guests)
        if len(self.components) != n_guests or self.knots_share.shape != (
            n_guests,
            len(self.knots_ms),
        ):
            raise ValueError("components and knots of each guest are needed")

    def part(self, some: slice) -> PrecopyGuests:
        """Return some of them."""
        return PrecopyGuests(
            self.guests[some], self.components[some], self.knots_ms, self.knots_share[some]
        )

    def to_c(self) -> Any:
        """Return the C struct; it points into the arrays, which must stay."""
        return ffi.new(
            "struct ps_precopy_guests *",
            {
                "guests": _structs(self.guests, "ps_precopy_guest", PRECOPY_GUEST),
                "components": _structs(self.components, "ps_precopy_component", PRECOPY_COMPONENT),
                "knots_ms": _doubles(self.knots_ms, "knots_ms"),
                "knots_share": _doubles(self.knots_share, "knots_share"),
                "n_guests": len(self.guests),
                "n_components": self.components.shape[1],
                "n_knots": len(self.knots_ms),
            },
        )


def precopy_grid(
    parameters: dict[str, float], guests: PrecopyGuests, cells: NDArray[Any]
) -> NDArray[Any]:
    """Migrate each guest with each cell; see ps_precopy_grid.

    Args:
        parameters: members of struct ps_precopy_parameters.
        guests: what is migrated.
        cells: PRECOPY_CELL, shape [cells].

    Returns:
        PRECOPY_OUTCOME, shape [guests, cells].
    """
    outcomes = np.zeros((len(guests.guests), len(cells)), dtype=PRECOPY_OUTCOME)
    c_parameters = ffi.new("struct ps_precopy_parameters *", parameters)
    c_cells = _structs(cells, "ps_precopy_cell", PRECOPY_CELL)
    # A few at a time: in between Python sees a Ctrl-C.
    for first in range(0, len(outcomes), _GUESTS_AT_ONCE):
        part = slice(first, first + _GUESTS_AT_ONCE)
        c_outcomes = _structs(outcomes[part], "ps_precopy_outcome", PRECOPY_OUTCOME)
        c_guests = guests.part(part).to_c()
        check(
            lib.ps_precopy_grid(c_parameters, c_guests, c_cells, len(cells), c_outcomes),
            "ps_precopy_grid",
        )
    return outcomes


def precopy_rounds(
    parameters: dict[str, float], guest: PrecopyGuests, cell: NDArray[Any], max_rounds: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Migrate one guest with one cell; see ps_precopy_rounds.

    Returns:
        PRECOPY_OUTCOME, shape [1], and PRECOPY_ROUND, one per bitmap sync.
    """
    if len(guest.guests) != 1 or len(cell) != 1:
        raise ValueError("one guest and one cell are needed")
    outcome = np.zeros(1, dtype=PRECOPY_OUTCOME)
    rounds = np.zeros(max_rounds, dtype=PRECOPY_ROUND)
    n_rounds = check(
        lib.ps_precopy_rounds(
            ffi.new("struct ps_precopy_parameters *", parameters),
            guest.to_c(),
            _structs(cell, "ps_precopy_cell", PRECOPY_CELL),
            max_rounds,
            _structs(outcome, "ps_precopy_outcome", PRECOPY_OUTCOME),
            _structs(rounds, "ps_precopy_round", PRECOPY_ROUND),
        ),
        "ps_precopy_rounds",
    )
    return outcome, rounds[: min(n_rounds, max_rounds)]
