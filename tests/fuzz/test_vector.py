import json
import pathlib

import pytest
import vector
from hypothesis import example, given
from hypothesis import strategies as st

CORPUS = sorted((pathlib.Path(__file__).parent / "corpus").iterdir())
PUBLISHED = json.loads((CORPUS[0].parent / "published.json").read_text())

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_each_seed_of_the_corpus_is_read_or_refused(path):
    vector.check(path.read_bytes())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    vector.check(data)


@given(json_values)
def test_any_json_is_read_or_refused(value):
    vector.check(json.dumps(value).encode())


@given(
    st.dictionaries(
        st.sampled_from(sorted({*PUBLISHED, "vcpu-dirty-rate", "x-pysampler", "calc-time-unit"})),
        json_values,
    )
)
def test_a_vector_with_any_members_replaced_is_read_or_refused(members):
    vector.check(json.dumps({**PUBLISHED, **members}).encode())


@given(json_values)
@example(["x"] * 22)
@example([10**400] * 22)
@example([None] * 22)
@example([[1, 2]] * 22)
@example([-1.0] * 22)
@example([float("nan")] * 22)
def test_exact_periods_may_be_anything(value):
    vector.check(json.dumps({**PUBLISHED, "x-pysampler": {"periods-ns": value}}).encode())


@pytest.mark.parametrize("digits", [4299, 4300, 4301, 100_000])
def test_a_number_of_many_digits_is_read_or_refused(digits):
    for key in ("page-size", "x", "calc-time"):
        vector.check(
            json.dumps({**PUBLISHED, key: 0})
            .replace(f'"{key}": 0', f'"{key}": {"7" * digits}')
            .encode()
        )
