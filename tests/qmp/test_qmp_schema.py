"""The schema's checks against what a real QEMU said to the same arguments."""

import pytest
from qemu_arguments import ARGUMENTS, ROWS, error_of

from pysampler.qmp.schema import Array, Member, Number, Place, Struct, Unsigned, check_arguments
from pysampler.qmp.wire.messages import QmpError


@pytest.mark.parametrize("name", sorted({row["execute"] for row in ROWS}))
def test_arguments_are_refused_in_qemus_words(name):
    rows = [row for row in ROWS if row["execute"] == name]
    assert [error_of(name, row["arguments"]) for row in rows] == [row["error"] for row in rows]


def test_the_table_has_every_kind_of_error():
    errors = " ".join(row["error"] or "" for row in ROWS)
    for words in (
        *(f"expected: {kind}" for kind in ("boolean", "integer", "string", "array", "object")),
        *("is missing", "is unexpected", "does not accept value"),
        *("expects uint64", "expects uint8_t", "expects uint16_t"),
    ):
        assert words in errors


def test_a_number_may_be_an_integer_and_nothing_else():
    assert Number().check(2, Place()) == 2.0
    assert isinstance(Number().check(2, Place()), float)
    assert Number().check(0.5, Place()) == 0.5
    for value in (True, "1", None, [], {}):
        with pytest.raises(QmpError, match=r"^Invalid parameter type for 'x', expected: number$"):
            check_arguments((Member("x", Number()),), {"x": value})


@pytest.mark.parametrize(
    ("value", "unsigned"), [(0, 0), (-1, (1 << 64) - 1), (-(1 << 63), 1 << 63), (1 << 63, 1 << 63)]
)
def test_a_negative_number_stands_for_a_large_unsigned_one(value, unsigned):
    assert check_arguments((Member("x", Unsigned()),), {"x": value}) == {"x": unsigned}


def test_what_is_given_comes_back_and_what_is_not_given_stays_absent():
    given = {"capabilities": [{"state": True, "capability": "events"}]}
    assert check_arguments(ARGUMENTS["migrate-set-capabilities"], given) == given
    assert check_arguments(ARGUMENTS["migrate-set-parameters"], {}) == {}


def test_the_branch_of_an_object_stands_beside_its_other_members():
    address = {"transport": "socket", "type": "unix", "path": "/x"}
    given = {"channels": [{"channel-type": "main", "addr": address}]}
    assert check_arguments(ARGUMENTS["migrate"], given) == given


def test_a_place_is_named_from_the_top():
    members = (Member("a", Array(Array(Struct((Member("b", Number()),))))),)
    with pytest.raises(QmpError, match=r"'a\[1\]\[0\]\.b', expected: number"):
        check_arguments(members, {"a": [[], [{"b": "x"}]]})
