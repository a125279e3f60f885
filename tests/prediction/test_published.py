"""The published model against its published table and against an independent slow implementation."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pysampler
from pysampler import Measurement
from pysampler.cli.prediction_tables import eta, published_table
from pysampler.errors import FormatError, UsageError
from pysampler.prediction import published

GOLDEN = Path(__file__).parents[1] / "golden"
VECTOR = Measurement.from_json((GOLDEN / "vector-32gib-memcached.json").read_text())


def slow_dirty(v, ms):
    """D(t) as the specification words it; the first point that is late enough counts."""
    r = v["n-sampled-pages"] / v["n-total-pages"]
    t, d = v["periods"], [n / r for n in v["n-dirty-pages"]]
    limit = v["n-total-pages"] - v["n-zero-pages"] / r
    intercept = d[0] - (d[1] - d[0]) / (t[1] - t[0]) * t[0]
    t, d = [0, *t], [max(0, intercept), *d]
    for i in range(len(t)):
        if t[i] == ms:
            return d[i]
        if t[i] > ms:
            return d[i - 1] + (d[i] - d[i - 1]) * (ms - t[i - 1]) / (t[i] - t[i - 1])
    rise = (d[-1] - d[-2]) / (t[-1] - t[-2])
    return min(limit, d[-1] + rise * (ms - t[-1])) if rise > 0 else d[-1]


def slow_migrate(v, bandwidth, limit_ms):
    """Seconds, or None; every round is run, however long it takes."""
    r = v["n-sampled-pages"] / v["n-total-pages"]
    zero = v["n-zero-pages"] / r
    pages, zeros, total = v["n-total-pages"] - zero, zero, 0.0
    while True:
        # A vector that falls makes the recursion chaotic, so rounding must be the same: in this order.
        ms = (pages * (v["page-size"] + 8) + zeros * 8) / bandwidth * 1000
        total += ms
        if ms <= limit_ms:
            return total / 1000
        if total > 3_600_000:
            return None
        pages, zeros = slow_dirty(v, ms), 0


@pytest.fixture(scope="module")
def generated():
    rng = np.random.default_rng(2023)
    cases = []
    for _ in range(3000):
        n = int(rng.integers(2, 23))
        sampled = int(rng.integers(10, 20_000))
        zero = int(rng.integers(0, sampled))
        # Not monotone: a page may get its old content back.
        dirty = rng.integers(0, sampled - zero + 1, n)
        if rng.random() < 0.8:
            dirty = np.sort(dirty)
        periods = np.cumsum(rng.integers(1, 9000, n))
        order = rng.random()
        if order < 0.1:  # as no sampler writes them, but the author's script takes them
            rng.shuffle(periods)
        elif order < 0.2:
            periods[0] = 0
        elif order < 0.3:
            periods = periods - 0.375
        vector = {
            "page-size": int(rng.choice([4096, 16384])),
            "periods": periods.tolist(),
            "n-dirty-pages": [int(d) for d in dirty],
            "n-sampled-pages": sampled,
            "n-zero-pages": zero,
            "n-total-pages": sampled * int(rng.integers(1, 600)),
        }
        # From far below the dirty rate to far above it; no slow bandwidth with a tiny limit, since
        # the slow implementation runs every one of its rounds.
        bandwidth = float(10 ** rng.uniform(6, 10))
        limit = float(10 ** rng.uniform(1.5, 5)) if rng.random() < 0.9 else math.inf
        cases.append((vector, bandwidth, limit))
    return cases


def test_the_48_published_cells_come_out():
    table = published_table(pysampler.predict(VECTOR, model="published"))
    assert table == (GOLDEN / "prediction-32gib-memcached.txt").read_text()


def test_it_equals_a_slow_implementation_on_generated_vectors(generated):
    for vector, bandwidth, limit in generated:
        cell = pysampler.predict(
            Measurement.from_dict(vector), bandwidth, limit, model="published"
        ).cells[0]
        expected = slow_migrate(vector, bandwidth, limit)
        assert (cell.total_ms is None) == (expected is None), vector
        if expected is not None:
            assert cell.total_ms == pytest.approx(1000 * expected, rel=1e-9), vector


def test_the_curve_equals_the_slow_one_at_and_between_the_points(generated):
    for vector, _, _ in generated[:300]:
        curve = published.PublishedCurve(Measurement.from_dict(vector))
        for ms in (0, 1, vector["periods"][0], vector["periods"][-1], 20_011, 10**7):
            assert curve(ms) == pytest.approx(slow_dirty(vector, ms), rel=1e-9, abs=1e-6)


@given(st.integers(2, 1000), st.sampled_from([1, 3, 7]))
def test_more_memory_and_more_bandwidth_cancel(factor, gbps):
    larger = dataclasses.replace(VECTOR, n_total_pages=VECTOR.n_total_pages * factor)
    small = pysampler.predict(VECTOR, gbps * 1e9, 700, model="published").cells[0]
    large = pysampler.predict(larger, gbps * 1e9 * factor, 700, model="published").cells[0]
    assert small.p_converge == large.p_converge
    assert (small.total_ms or 0) == pytest.approx(large.total_ms or 0, rel=1e-9)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"periods": (125,), "n_dirty_pages": (33,)}, "periods: 1 of them"),
        ({"periods": (), "n_dirty_pages": ()}, "periods: 0 of them"),
        ({"periods": (125, 125), "n_dirty_pages": (3, 4)}, "periods: 125 ms twice"),
        (
            {"n_sampled_pages": 0, "n_dirty_pages": (0,) * 22, "n_zero_pages": 0},
            "n-sampled-pages: 0",
        ),
    ],
)
def test_what_would_divide_by_zero_is_refused_by_key(members, message):
    with pytest.raises(FormatError, match=message):
        pysampler.predict(dataclasses.replace(VECTOR, **members), model="published")


def test_an_iteration_that_fits_the_limit_ends_it_however_late():
    cell = pysampler.predict(VECTOR, "10Mbps", "unlimited", model="published").cells[0]
    assert cell.total_ms > 3_600_000
    assert (cell.iterations, cell.p_converge) == (1, 1.0)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"n_dirty_pages": (1, 2)}, "n-dirty-pages has 2 values"),
        ({"n_zero_pages": VECTOR.n_sampled_pages + 1}, "n-zero-pages: 16393 is not between"),
        ({"n_total_pages": 0}, "n-sampled-pages: more samples"),
        ({"n_dirty_pages": (float("nan"),) * 22}, "n-dirty-pages.0.: 'nan'"),
    ],
)
@pytest.mark.parametrize("model", ["published", "qemu"])
def test_a_measurement_put_together_wrongly_is_refused_by_key(members, message, model):
    with pytest.raises(FormatError, match=message):
        pysampler.predict(dataclasses.replace(VECTOR, **members), 1e9, 300, model=model)


def test_what_is_no_measurement_is_refused():
    with pytest.raises(UsageError, match="measurement: a dict is not a Measurement"):
        pysampler.predict({}, 1e9, 300)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "-"),
        (1, "1s"),
        (47_001, "48s"),
        (67_000, "1m07s"),
        (1_018_200, "16m59s"),
        (3_599_001, "1h00m00s"),
    ],
)
def test_an_eta_is_rounded_up(ms, text):
    assert eta(ms) == text


def test_the_published_model_needs_no_scipy(run_without):
    run_without(
        "scipy",
        f"import pysampler, json; v = pysampler.Measurement.from_json({json.dumps(VECTOR.to_json())}); print(pysampler.predict(v, 1e9, 300, model='published').cells[0].p_converge)",
    )
