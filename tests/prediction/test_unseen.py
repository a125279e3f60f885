"""What the samples can have missed, or nobody could read, is in the guests that are predicted."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pysampler import Measurement, Precopy, predict
from pysampler.errors import FormatError
from pysampler.prediction.advise import advise, quick
from pysampler.prediction.curve import Counts, choose_fitter, fit_curve
from pysampler.prediction.ensemble import assemble, build_ensemble
from pysampler.prediction.precopy_model import migrate
from pysampler.prediction.unseen import with_unseen
from pysampler.vector.schedule import periods_ms

ROOT = Path(__file__).parents[2]
PERIODS = periods_ms(10_000)
SECONDS = np.array(PERIODS) / 1000
# 256 MiB, of which 1 MiB is hot: 128 samples miss it with a chance of 61 %.
CLEAN = Measurement(4096, PERIODS, (0,) * len(PERIODS), 128, 0, 65_536)
HOT_BYTES_PER_S = 3.5e6  # of exact tracking, in 300 ms


def volumes(measurement, seconds=SECONDS):
    ensemble = build_ensemble(measurement, 100, seed=0)
    return np.array([member(seconds) for member in ensemble.members])


def with_dirty(shape, **members):
    return dataclasses.replace(CLEAN, n_dirty_pages=tuple(int(n) for n in shape), **members)


def test_no_dirty_sample_is_no_certainty():
    cell = predict(CLEAN, 75e3, 300).cells[0]
    assert 0.05 < cell.p_converge < 0.5
    assert predict(CLEAN, 1e9, 300).cells[0].p_converge == 1


def test_the_safe_bandwidth_carries_what_the_samples_can_have_missed():
    found = {one.remedy: one for one in advise(CLEAN, 75e3, 300.0, members=100)}
    assert found["bandwidth"].safe_value > HOT_BYTES_PER_S
    assert found["none"].p_converge < 0.5
    told = predict(CLEAN, found["bandwidth"].safe_value, 300, members=100).cells[0]
    assert told.p_converge >= 0.95


@pytest.mark.parametrize("dirty", [0, 1, 2, 5])
def test_the_volume_reaches_beyond_what_so_few_samples_tell(dirty):
    found = volumes(with_dirty([dirty] * len(PERIODS)))[:, -1] * 128 / 65_536
    low, high = np.quantile(found, (0.05, 0.95), method="inverted_cdf")
    # Guests of so many expected samples give as few, or as many, once in ten times.
    assert high > {0: 2.3, 1: 3.9, 2: 5.3, 5: 9.2}[dirty]
    assert low == 0 if dirty == 0 else 0 < low < dirty


def test_what_was_seen_dirty_is_in_every_guest():
    assert (volumes(with_dirty([1] * len(PERIODS))) > 0).all()


def test_where_every_page_is_tracked_nothing_is_missed():
    exact = with_dirty(65_536 * (1 - np.exp(-SECONDS / 5)), n_sampled_pages=65_536)
    assert np.ptp(volumes(exact), axis=0).max() == 0
    clean = dataclasses.replace(exact, n_dirty_pages=(0,) * len(PERIODS))
    assert predict(clean, 75e3, 300).cells[0].p_converge == 1


def test_many_dirty_samples_leave_no_room_for_others():
    shape = 4000 * (1 - np.exp(-SECONDS / 5))
    many = with_dirty(shape, n_sampled_pages=16_384)
    found = np.median(volumes(many), axis=0)
    np.testing.assert_allclose(found, build_ensemble(many, 2, seed=0).curve(SECONDS), rtol=0.02)


def test_bursts_hold_missed_pages_as_well():
    active = np.floor(SECONDS) * 0.5 + np.minimum(SECONDS % 1, 0.5)
    vector = with_dirty(300 * (1 - np.exp(-active / 2)), n_sampled_pages=2048)
    ensemble = build_ensemble(vector, 400, seed=0)
    assert "in bursts" in ensemble.curve.quality
    assert max(len(one.components) for one in ensemble.members) > len(ensemble.curve.components)


@pytest.mark.parametrize(("pages", "sampled", "several"), [(80, 2048, True), (3000, 32768, False)])
def test_few_dirty_samples_do_not_tell_one_burst_from_another(pages, sampled, several):
    active = np.floor(SECONDS) * 0.5 + np.minimum(SECONDS % 1, 0.5)
    expected = np.diff(pages * (1 - np.exp(-active / 2)), prepend=0.0)
    dirty = np.cumsum(np.random.default_rng(0).poisson(expected))
    ensemble = build_ensemble(with_dirty(dirty, n_sampled_pages=sampled), 100, seed=0)
    assert "in bursts" in ensemble.curve.quality
    bursts = {member.burst for member in ensemble.members}
    assert (len(bursts) > 5) == several
    lengths = {1000 * member.burst.on_s for member in ensemble.members}
    assert set(ensemble.guests["burst_on_ms"]) == lengths


def test_joined_points_hold_missed_pages_as_well():
    vector = with_dirty(8192 * np.repeat([0, 0.2, 0.45, 0.6], [3, 4, 4, 1]), n_sampled_pages=8192)
    counts = Counts.of(vector)
    curve = fit_curve(counts, choose_fitter(counts))
    assert curve.interpolated
    few = dataclasses.replace(counts, dirty=np.zeros(len(PERIODS)), scale=80.0)
    members = with_unseen([curve] * 50, few, np.random.default_rng(0))
    more = np.array([one(np.array([0.1]))[0] - curve(np.array([0.1]))[0] for one in members])
    assert 0.7 < (more > 0).mean() < 0.8
    rng = np.random.default_rng(0)
    sent = [
        migrate(assemble(curve, guests, vector, rng), Precopy(), [(5e8, 100.0)])[
            "sent_bytes"
        ].mean()
        for guests in ([curve] * 50, members)
    ]
    assert sent[1] > sent[0]


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", ROOT / "bench" / "calibration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.statistics
def test_intervals_and_probabilities_of_random_small_counts_are_kept(calibration):
    """Of 700 guests of another seed 92.9 % of the intervals hold, and the Brier score is 0.046. Of
    150 drawn from these, 1 in 200 times (0.51 % of 20,000) fewer than 88 % hold; the score was
    over 0.08 in 0.005 %, and never half of what it is when the mean is always said.
    """
    rng = np.random.default_rng(1)
    results = [calibration.tried(rng, 60) for _ in range(150)]
    assert np.mean([one.inside for one in results]) >= 0.88
    brier = np.mean([(one.predicted - one.converged) ** 2 for one in results])
    assert brier < 0.08
    assert brier < 0.5 * np.mean([one.converged for one in results]) * (
        1 - np.mean([one.converged for one in results])
    )


def single(dirty, **details):
    return Measurement(4096, (300,), (dirty,), 128, 0, 65_536, details=details)


def test_the_quick_rule_is_as_unsure_as_its_few_samples():
    slow, fast = (quick(single(0), rate, 300) for rate in (75e3, 1e9))
    assert not slow.converges
    assert slow.p_converge < 0.5
    assert "may well have missed more" in slow.reasoning
    assert fast.converges
    assert fast.p_converge == pytest.approx(1)


@pytest.mark.parametrize("dirty", [1, 20, 100, 101])
def test_the_quick_rule_is_surer_with_more_bandwidth(dirty):
    found = [quick(single(dirty), rate, 300).p_converge for rate in np.geomspace(1e5, 1e10, 60)]
    assert (np.diff(found) >= -1e-12).all()
    assert 0 <= found[0] < 0.01
    assert 0.99 < found[-1] <= 1


def unreadable(samples, dirty=20, **more):
    details = {"unreadable": [samples] * len(PERIODS), **more}
    return with_dirty([dirty] * len(PERIODS), n_sampled_pages=1280, details=details)


@pytest.mark.parametrize("dirty", [0, 20, 400])
def test_samples_that_could_not_be_read_widen_the_volume_up_to_all_of_them(dirty):
    plain, wide = (volumes(unreadable(n, dirty))[:, -1] * 1280 / 65_536 for n in (0, 500))
    assert np.quantile(plain, 0.99) < dirty + 90
    assert np.quantile(wide, 0.95) > dirty + 400
    assert np.quantile(wide, 0.05) < dirty + 60


def test_samples_that_could_not_be_read_make_a_migration_less_likely():
    p = [predict(unreadable(n), 40e6, 300).cells[0].p_converge for n in (0, 100, 400)]
    assert p[0] > p[1] + 0.05
    assert p[1] > p[2] + 0.05
    readable, half = (quick(single(1, unreadable=[n]), 30e6, 300).p_converge for n in (0, 60))
    assert readable > half + 0.2


def test_a_baseline_counts_where_the_passes_say_nothing():
    wide = with_dirty(
        [20] * len(PERIODS), n_sampled_pages=1280, details={"baseline": {"unreadable": 500}}
    )
    assert np.quantile(volumes(wide)[:, -1], 0.95) > 420 / 1280 * 65_536


@pytest.mark.parametrize("call", [
    lambda vector: predict(vector, 1e9, 300),
    lambda vector: predict(vector, 1e9, 300, model="published"),
    lambda vector: advise(vector, 1e9, 300.0),
    lambda vector: quick(vector, 1e9, 10_000.0),
])  # fmt: skip
def test_mostly_unreadable_is_refused_with_share_cause_and_cure(call):
    causes = {"swapped-out": 800, "file-backed": 0, "userfaultfd": 96, "closed": 0}
    with pytest.raises(FormatError) as caught:
        call(unreadable(896, **{"unreadable-causes": causes}))
    message = str(caught.value)
    assert "70% of the samples could not be read (swapped-out: 800, userfaultfd: 96)" in message
    assert "let the guest come back from swap" in message


@pytest.mark.parametrize(
    ("details", "key"),
    [
        ({"unreadable": 5}, "unreadable: not an array"),
        ({"unreadable": {}}, "unreadable: not an array"),
        ({"unreadable": [0] * 5000}, "unreadable: not an array"),
        ({"unreadable": [-1]}, r"unreadable\[0\]: not a whole"),
        ({"unreadable": [0, 129]}, r"unreadable\[1\]: not a whole"),
        ({"unreadable": [10**5000]}, r"unreadable\[0\]: not a whole"),
        ({"unreadable": ["x"]}, r"unreadable\[0\]: not a whole"),
        ({"unreadable": [True]}, r"unreadable\[0\]: not a whole"),
        ({"unreadable": [1.5]}, r"unreadable\[0\]: not a whole"),
        ({"baseline": {"unreadable": -3}}, "baseline.unreadable: not a whole"),
        ({"unreadable": [100], "unreadable-causes": 5}, "unreadable-causes: not an object"),
        ({"unreadable": [100], "unreadable-causes": {"closed": []}}, r"unreadable-causes.closed"),
    ],
)
def test_unreadable_counts_that_cannot_be_are_refused_by_key(details, key):
    with pytest.raises(FormatError, match=f"x-pysampler.{key}"):
        predict(dataclasses.replace(CLEAN, details=details), 1e9, 300)


@pytest.mark.parametrize("details", [{}, {"baseline": 5}, {"baseline": {}}, {"unreadable": []}])
def test_a_vector_that_says_nothing_of_unreadable_samples_is_taken(details):
    assert predict(dataclasses.replace(CLEAN, details=details), 1e9, 300).cells[0].p_converge == 1
