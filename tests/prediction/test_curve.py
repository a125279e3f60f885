"""The fitted dirty-page curve: shape, families, and how it says what it cannot explain."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysampler import Measurement
from pysampler.core import ComponentKind
from pysampler.errors import FormatError
from pysampler.prediction.curve import Burst, Counts, choose_fitter, fit_curve
from pysampler.vector.schedule import periods_ms

PERIODS = periods_ms(15_000)
SECONDS = np.array(PERIODS) / 1000


def vector(shares, *, sampled=8192, zero=0.3, seed=None):
    """A vector of 1 GiB whose shares of all pages are dirty: exactly, or drawn with a seed."""
    shares = np.asarray(shares, dtype=float)
    classes = np.array([*np.diff(shares, prepend=0.0), 1 - zero - shares[-1], zero])
    if seed is None:
        dirty, n_zero = np.round(np.cumsum(classes[:-2]) * sampled), round(zero * sampled)
    else:
        draw = np.random.default_rng(seed).multinomial(sampled, classes)
        dirty, n_zero = np.cumsum(draw[:-2]), draw[-1]
    return Measurement(
        page_size=4096,
        periods=PERIODS,
        n_dirty_pages=tuple(int(d) for d in dirty),
        n_sampled_pages=sampled,
        n_zero_pages=int(n_zero),
        n_total_pages=262_144,
    )


def fitted(measurement):
    counts = Counts.of(measurement)
    return fit_curve(counts, choose_fitter(counts))


def test_a_uniform_writer_is_one_random_mode():
    curve = fitted(vector(0.25 * -np.expm1(-SECONDS / 6.5), seed=1))
    assert [mode.kind for mode in curve.components] == [ComponentKind.RANDOM]
    # 65536 pages at 1/6.5 s; 1600 of 8192 samples tell them to about 3 % (one sd).
    assert curve.components[0].pages == pytest.approx(65_536, rel=0.12)
    assert curve.components[0].rate == pytest.approx(1 / 6.5, rel=0.12)


def test_a_hot_and_a_cold_part_are_two_random_modes_hottest_first():
    shares = 0.05 * -np.expm1(-SECONDS / 0.7) + 0.45 * -np.expm1(-SECONDS / 60)
    hot, cold = fitted(vector(shares, seed=2)).components
    assert hot.kind is cold.kind is ComponentKind.RANDOM
    assert hot.pages == pytest.approx(0.05 * 262_144, rel=0.25)
    assert hot.rate > 5 * cold.rate


def test_a_sequential_writer_is_told_from_a_random_one():
    curve = fitted(vector(0.5 * np.minimum(1, SECONDS / 13.1), seed=3))
    assert [mode.kind for mode in curve.components] == [ComponentKind.SEQUENTIAL]
    assert 1 / curve.components[0].rate == pytest.approx(13.1, rel=0.1)


def test_a_writer_in_bursts_is_recognised():
    active = np.floor(SECONDS) * 0.5 + np.minimum(SECONDS % 1, 0.5)
    curve = fitted(vector(0.5 * -np.expm1(-active / 2), seed=4))
    assert curve.burst is not None
    assert curve.burst.period_s == 1.0
    assert "in bursts" in curve.quality


def test_what_nothing_explains_is_interpolated_and_says_so():
    shares = np.array([0.0, 0.0, 0.0, 0.2, 0.2, 0.2, 0.2, 0.45, 0.45, 0.45, 0.45, 0.45, 0.6, 0.6])
    curve = fitted(vector(shares))
    assert curve.interpolated
    assert "interpolated" in curve.quality
    np.testing.assert_allclose(curve(SECONDS), shares * 262_144, atol=32)


def test_a_clean_guest_has_no_modes():
    curve = fitted(vector(np.zeros(len(SECONDS))))
    assert curve(np.array([0.1, 1e3])).tolist() == [0, 0]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.001, 0.3), st.floats(0.01, 20)), min_size=1, max_size=2),
    st.integers(0, 2**32),
)
def test_a_fit_rises_is_concave_and_ends_at_the_nonzero_pages(components, seed):
    shares = sum(mass * -np.expm1(-SECONDS * rate) for mass, rate in components)
    measurement = vector(np.minimum(shares, 0.69), seed=seed)
    curve = fitted(measurement)
    if curve.interpolated or curve.burst:
        return
    t = np.linspace(0, 60, 601)
    pages = curve(t)
    slopes = np.diff(pages)
    assert pages[0] == 0
    assert (slopes >= -1e-6).all()
    assert (np.diff(slopes) <= 1e-6 * max(1, pages[-1])).all()
    assert pages[-1] <= curve.nonzero_pages * (1 + 1e-6)


def test_one_period_is_a_line_to_its_point():
    measurement = dataclasses.replace(
        vector(np.zeros(len(SECONDS))), periods=(300,), n_dirty_pages=(100,)
    )
    curve = fitted(measurement)
    assert curve(np.array([0.3]))[0] == pytest.approx(100 * 32, rel=0.01)


@settings(max_examples=5, deadline=None)
@given(st.floats(0, 1), st.integers(0, 2**32))
def test_bursts_are_explained_whatever_their_phase(phase, seed):
    burst = Burst(1.0, 0.5, phase)
    shares = 0.25 * -np.expm1(-burst.active(SECONDS) / 1.3)
    curve = fitted(vector(shares, seed=seed))
    # A phase that puts the first 500 ms into one piece of it may be told from a steady guest or not.
    if curve.burst is not None:
        assert curve.burst.period_s == 1.0
    assert not curve.interpolated


def test_the_size_of_the_memory_scales_the_curve():
    small = vector(0.25 * -np.expm1(-SECONDS / 6.5), seed=5)
    large = dataclasses.replace(small, n_total_pages=small.n_total_pages * 32)
    np.testing.assert_allclose(fitted(large)(SECONDS), 32 * fitted(small)(SECONDS), rtol=1e-9)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"n_sampled_pages": 0}, "n-sampled-pages"),
        ({"periods": (), "n_dirty_pages": ()}, "periods: none"),
        ({"periods": (5, 5), "n_dirty_pages": (1, 1)}, "periods: each must come after"),
    ],
)
def test_a_vector_without_a_curve_is_refused_by_key(members, message):
    measurement = dataclasses.replace(vector(np.zeros(len(SECONDS))), **members)
    with pytest.raises(FormatError, match=message):
        Counts.of(measurement)
