# SPDX-License-Identifier: MIT
"""Arrays of C structs: numpy and C mean the same bytes by the same member."""

import numpy as np
import pytest
from pysampler._native import ffi

from pysampler import core
from pysampler.core.seam import struct_dtype

STRUCTS = {
    "ps_precopy_component": core.PRECOPY_COMPONENT,
    "ps_precopy_guest": core.PRECOPY_GUEST,
    "ps_precopy_cell": core.PRECOPY_CELL,
    "ps_precopy_outcome": core.PRECOPY_OUTCOME,
    "ps_precopy_round": core.PRECOPY_ROUND,
}


@pytest.mark.parametrize("name", STRUCTS)
def test_a_members_value_is_the_same_to_numpy_and_to_c(name: str) -> None:
    dtype = STRUCTS[name]
    array = np.zeros(3, dtype=dtype)
    structs = ffi.from_buffer(f"struct {name}[]", array)
    members = [member for member, _ in ffi.typeof(f"struct {name}").fields]
    assert list(dtype.names or ()) == members
    assert len(structs) == 3  # an item has C's size
    for value, member in enumerate(members, start=-len(members)):
        array[member][2] = value  # unlike the others, and negative: a sign must not be lost
    for value, member in enumerate(members, start=-len(members)):
        assert getattr(structs[2], member) == value
        assert getattr(structs[1], member) == 0
        assert dtype[member].kind == (
            "f" if isinstance(getattr(structs[2], member), float) else "i"
        )


def test_a_member_without_a_numpy_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"^struct ps_range: address is uint64_t, which"):
        struct_dtype("ps_range")
