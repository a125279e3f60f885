import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from simulated import generator, simulate

from pysampler.units import GIB
from pysampler.validation.judgement import at_the_assumed_rate, is_judged, judge


@pytest.fixture(scope="module")
def of_noise():
    return [judge(simulate(generator(seed))) for seed in range(200)]


def test_noise_is_called_bias_as_rarely_as_promised(of_noise):
    # One run in a hundred; more than 9 of 200 have a chance of 4e-5.
    assert sum(judgement.biased for judgement in of_noise) <= 9


def test_p_values_of_noise_are_spread_evenly(of_noise):
    # Kolmogorov-Smirnov; false alarm 1e-4. Counts are whole, which hardly shows at 65536 samples.
    p_values = [judgement.p_value for judgement in of_noise]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


FAULTS = {
    "a pass too long": {"baseline_ms": 50.0, "compare_ms": 20.0},
    "a slowed writer": {"pass_speed": 0.2, "baseline_ms": 40.0, "compare_ms": 40.0},
    "late wake-ups": {"late_ms": 9.0, "counts_late": True},
}


@pytest.mark.parametrize("culprit", FAULTS)
@pytest.mark.parametrize("seed", range(5))
def test_the_culprit_of_a_bias_is_named(culprit, seed):
    judgement = judge(simulate(generator(seed), **FAULTS[culprit]))
    assert judgement.biased
    assert judgement.suspects[0].name == culprit
    assert judgement.suspects[0].explained > 0.9
    assert culprit in judgement.verdict


def test_a_bias_that_nothing_explains_accuses_nobody():
    rows = simulate(generator(1))
    wrong = [replace(row, n_dirty_pages=round(row.n_dirty_pages * 1.05)) for row in rows]
    judgement = judge(wrong)
    assert judgement.biased
    assert "nothing that was measured explains it" in judgement.verdict


def test_saturated_rows_are_not_judged():
    rows = simulate(generator(2), size=GIB)
    assert [row.calc_time_ms for row in rows if is_judged(row)] == [100, 200, 300, 400, 500]
    assert judge(rows).n_judged == 5


def test_exact_tracking_is_not_judged():
    judgement = judge(simulate(generator(3), method="dirty-bitmap"))
    assert judgement.n_judged == 0
    assert math.isnan(judgement.p_value)
    assert not judgement.biased


def test_a_rate_taken_for_granted_seems_to_be_a_bias_of_the_sampler():
    # The published 24 GiB rows: asked for 3 M writes a second, 2.3 M done.
    rows = simulate(generator(4), wps=2_300_000.0, size=24 * GIB)
    assumed = at_the_assumed_rate(rows)
    assert assumed.slower == pytest.approx(1 - 2.3 / 3, abs=1e-3)
    assert -0.23 < assumed.mean_deviation < -0.15
    assert not judge(rows).biased


@pytest.mark.parametrize("method", ["qemu", "fast"])
@pytest.mark.parametrize("workload", ["uniform", "hotcold", "zipf", "sweep"])
def test_rows_of_every_workload_have_a_spread(workload, method):
    rows = simulate(generator(5), workload=workload, method=method)
    assert all(0 <= row.theory <= row.n_pages and row.sd >= 0 for row in rows)
    assert all(np.isfinite(row.z) for row in rows)
