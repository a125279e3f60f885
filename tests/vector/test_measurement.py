import dataclasses
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysampler import Measurement, Mode, Status
from pysampler.errors import FormatError

GOLDEN = (Path(__file__).parents[1] / "golden" / "vector-32gib-memcached.json").read_text()


def test_the_published_vector_comes_back_byte_for_byte():
    assert Measurement.from_json(GOLDEN).to_json() == GOLDEN


def test_the_published_dirty_rate_is_computed():
    assert Measurement.from_json(GOLDEN).dirty_rate == 98


def test_a_reply_of_qmp_is_the_vector_in_it():
    vector = Measurement.from_json(GOLDEN)
    assert Measurement.from_json(f'{{"return": {GOLDEN}, "id": 7}}') == vector
    assert Measurement.from_dict({"return": json.loads(GOLDEN)}) == vector
    # A member of that name which a vector has of its own is as unknown as any other.
    assert Measurement.from_dict({**json.loads(GOLDEN), "return": {}}) == vector


@pytest.mark.parametrize("content", ["{}", "[]", "null", "1", '{"periods": [1]}'])
def test_a_reply_without_a_vector_is_refused(content):
    with pytest.raises(FormatError):
        Measurement.from_json(f'{{"return": {content}}}')


@st.composite
def measurements(draw):
    n_total = draw(st.integers(1, 1 << 34))
    n_sampled = draw(st.integers(0, n_total))
    periods = draw(st.lists(st.integers(1, 10**7), unique=True, max_size=30).map(sorted))
    unit = draw(st.sampled_from(["second", "millisecond"]))
    calc_time = draw(st.integers(0, 10**6)) * (1000 if unit == "second" else 1)
    mode = draw(st.sampled_from(Mode))
    return Measurement(
        page_size=draw(st.sampled_from([4096, 8192, 16384, 65536])),
        periods=tuple(periods),
        n_dirty_pages=tuple(draw(st.integers(0, n_sampled)) for _ in periods),
        n_sampled_pages=n_sampled,
        n_zero_pages=draw(st.integers(0, n_sampled)),
        n_total_pages=n_total,
        sample_pages=draw(st.integers(0, 16384)),
        calc_time_ms=calc_time,
        calc_time_unit=unit,
        start_time=draw(st.integers(0, 1 << 40)),
        status=draw(st.sampled_from(Status)),
        mode=mode,
        vcpu_dirty_rate=((0, 5), (1, 7)) if mode is Mode.DIRTY_RING else (),
        details=draw(st.dictionaries(st.text(), st.integers() | st.text(), max_size=3)),
    )


@given(measurements())
def test_json_round_trip(measurement):
    assert Measurement.from_json(measurement.to_json()) == measurement


@given(measurements())
def test_the_curve_lies_inside_its_interval_and_the_memory(measurement):
    curve = measurement.curve()
    slack = 1e-6 * measurement.n_total_pages
    assert (curve.low <= curve.dirty_pages + slack).all()
    assert (curve.dirty_pages <= curve.high + slack).all()
    assert ((curve.low >= 0) & (curve.high <= measurement.n_total_pages + slack)).all()


def test_a_period_may_be_a_fraction_of_a_millisecond():
    vector = edited(periods=[0.25, 125.0, *range(200, 220)])
    periods = Measurement.from_dict(vector).periods
    assert json.dumps(periods[:3]) == "[0.25, 125, 200]"
    assert Measurement.from_json(json.dumps(vector)).curve().seconds[0] == 0.25e-3


def edited(**members):
    return {**json.loads(GOLDEN), **{key.replace("_", "-"): v for key, v in members.items()}}


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([], "a vector is a JSON object"),
        (edited(page_size=4097), "page-size: 4097 is not a power of two"),
        (edited(page_size="4096"), "page-size: '4096' is not a whole number"),
        (edited(page_size=None), "page-size: missing"),
        (edited(n_sampled_pages=-1), "n-sampled-pages: -1 is not between"),
        (edited(n_sampled_pages=True), "n-sampled-pages: 'True' is not a whole number"),
        (edited(n_sampled_pages=10**18), "n-sampled-pages"),
        (edited(n_zero_pages=16393), "n-zero-pages: 16393 is not between 0 and 16392"),
        (edited(periods=[125]), "n-dirty-pages has 22 values, but periods has 1"),
        (edited(periods=5), "periods: not an array"),
        (edited(periods=["1"] * 22), "periods.0.: '1' is not a number"),
        (edited(periods=[math.nan] * 22), "periods.0.: 'nan' is not a number"),
        (edited(periods=[10**400] * 22), "periods.0.: 10*0 is not between 0 and"),
        (edited(periods=[1e-306] * 22), "periods.0.: 1e-306 ms is shorter than any pass"),
        (edited(periods=[-0.5] * 22), "periods.0.: -0.5 is not between 0 and"),
        (edited(periods=[math.inf] * 22), "periods.0.: inf is not between 0 and"),
        (edited(periods=list(range(5000))), "periods: 5000 values"),
        (edited(status="done"), "status: 'done' is not one of"),
        (edited(mode=[]), "mode: "),
        (edited(x_pysampler=3), "x-pysampler: not an object"),
        (edited(x_pysampler={"periods-ns": ["1"]}), "periods-ns.0.: '1' is not a whole number"),
        (edited(vcpu_dirty_rate=[1]), "vcpu-dirty-rate.0.: not an object"),
    ],
)
def test_a_wrong_vector_is_refused_by_key(vector, message):
    with pytest.raises(FormatError, match=message):
        Measurement.from_json(json.dumps(vector))


@pytest.mark.parametrize("text", ["", "nonsense", "[" * 100_000, "{", b"\xff\xfe", "NaN"])
def test_what_is_not_a_json_object_is_refused(text):
    with pytest.raises(FormatError):
        Measurement.from_json(text)


def test_a_huge_text_is_refused_unparsed():
    with pytest.raises(FormatError, match="longer than 4 MiB"):
        Measurement.from_json("[" * (5 << 20))


def test_an_unfinished_measurement_states_no_dirty_rate():
    measurement = dataclasses.replace(Measurement.from_json(GOLDEN), status=Status.MEASURING)
    assert "dirty-rate" not in measurement.to_dict()


def test_a_vector_that_says_how_its_samples_changed_has_the_interval_of_strata():
    plain = dataclasses.replace(
        Measurement.from_json(GOLDEN), periods=(125,), n_dirty_pages=(2958,), details={}
    )
    strata = dataclasses.replace(plain, details={"changes": [40]})
    edited = dataclasses.replace(plain, details={"changes": [True]})
    widths = [m.curve().high[0] - m.curve().low[0] for m in (plain, strata, edited)]
    assert widths[1] < 0.2 * widths[0] == 0.2 * widths[2]
