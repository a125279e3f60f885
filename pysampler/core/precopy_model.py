# SPDX-License-Identifier: MIT
"""Pre-copy as QEMU runs it, for many guests and settings at once."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler._native import ffi, lib
from pysampler.core.seam import check, struct_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray


PRECOPY_MODE = struct_dtype("ps_precopy_mode")
PRECOPY_GUEST = struct_dtype("ps_precopy_guest")
PRECOPY_CELL = struct_dtype("ps_precopy_cell")
PRECOPY_OUTCOME = struct_dtype("ps_precopy_outcome")
PRECOPY_ROUND = struct_dtype("ps_precopy_round")

PRECOPY_MODES: int = lib.PS_PRECOPY_MODES


class ModeKind(enum.IntEnum):
    """How the pages of a mode are written."""

    RANDOM = lib.PS_MODE_RANDOM
    SEQUENTIAL = lib.PS_MODE_SEQUENTIAL
    TABLE = lib.PS_MODE_TABLE


def _structs(array: NDArray[Any], name: str, dtype: np.dtype[Any]) -> Any:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise TypeError(f"struct {name}: a contiguous array of its dtype is needed")
    return ffi.from_buffer(f"struct {name}[]", array)


def _doubles(array: NDArray[np.float64], what: str) -> Any:
    if array.dtype != np.float64 or not array.flags.c_contiguous or not np.isfinite(array).all():
        raise TypeError(f"{what} must be a contiguous array of finite float64")
    return ffi.from_buffer("double[]", array)


def precopy_grid(
    how: dict[str, float],
    guests: NDArray[Any],
    modes: NDArray[Any],
    knots_ms: NDArray[np.float64],
    knots_share: NDArray[np.float64],
    cells: NDArray[Any],
) -> NDArray[Any]:
    """Migrate each guest with each cell; see ps_precopy_grid.

    Args:
        how: members of struct ps_precopy.
        guests: PRECOPY_GUEST, shape [guests].
        modes: PRECOPY_MODE, shape [guests, modes].
        knots_ms: shape [knots].
        knots_share: shape [guests, knots].
        cells: PRECOPY_CELL, shape [cells].

    Returns:
        PRECOPY_OUTCOME, shape [guests, cells].
    """
    if len(modes) != len(guests) or knots_share.shape != (len(guests), len(knots_ms)):
        raise ValueError("modes and knots of each guest are needed")
    outcomes = np.zeros((len(guests), len(cells)), dtype=PRECOPY_OUTCOME)
    check(
        lib.ps_precopy_grid(
            ffi.new("struct ps_precopy *", how),
            _structs(guests, "ps_precopy_guest", PRECOPY_GUEST),
            len(guests),
            _structs(modes, "ps_precopy_mode", PRECOPY_MODE),
            modes.shape[1],
            _doubles(knots_ms, "knots_ms"),
            _doubles(knots_share, "knots_share"),
            len(knots_ms),
            _structs(cells, "ps_precopy_cell", PRECOPY_CELL),
            len(cells),
            _structs(outcomes, "ps_precopy_outcome", PRECOPY_OUTCOME),
        ),
        "ps_precopy_grid",
    )
    return outcomes


def precopy_rounds(
    how: dict[str, float],
    guest: NDArray[Any],
    modes: NDArray[Any],
    knots_ms: NDArray[np.float64],
    knots_share: NDArray[np.float64],
    cell: NDArray[Any],
    max_rounds: int,
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Migrate one guest with one cell; see ps_precopy_rounds. Arrays as above, one guest long.

    Returns:
        PRECOPY_OUTCOME, shape [1], and PRECOPY_ROUND, one per bitmap sync.
    """
    if len(guest) != 1 or len(cell) != 1 or modes.shape[0] != 1:
        raise ValueError("one guest and one cell are needed")
    outcome = np.zeros(1, dtype=PRECOPY_OUTCOME)
    rounds = np.zeros(max_rounds, dtype=PRECOPY_ROUND)
    n_rounds = check(
        lib.ps_precopy_rounds(
            ffi.new("struct ps_precopy *", how),
            _structs(guest, "ps_precopy_guest", PRECOPY_GUEST),
            _structs(modes, "ps_precopy_mode", PRECOPY_MODE),
            modes.shape[1],
            _doubles(knots_ms, "knots_ms"),
            _doubles(knots_share, "knots_share"),
            len(knots_ms),
            _structs(cell, "ps_precopy_cell", PRECOPY_CELL),
            _structs(outcome, "ps_precopy_outcome", PRECOPY_OUTCOME),
            _structs(rounds, "ps_precopy_round", PRECOPY_ROUND),
            max_rounds,
        ),
        "ps_precopy_rounds",
    )
    return outcome, rounds[: min(n_rounds, max_rounds)]
