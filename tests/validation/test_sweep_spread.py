"""The spread of a sweep seen by strata, which no book has, against a sweep that is walked through."""

import numpy as np
import pytest

from pysampler.sampling.plan import PROFILES, draw_plan
from pysampler.validation.workload import WORKLOADS

N_PAGES = 8192


@pytest.mark.parametrize(("writes", "in_pass"), [(3000, 0), (3000, 120), (3000, 900)])
def test_the_spread_of_a_sweep_seen_by_strata_is_met_by_simulation(writes, in_pass):
    # The formula is a bound near its crossover, where it is up to half too large. Of 800 walks
    # the variance is within 25 % of its own mean with a chance of more than 1 - 1e-6.
    rng = np.random.default_rng(30)
    found = []
    for seed in range(800):
        plan = draw_plan([N_PAGES * 4096], profile=PROFILES["fast"], sample_pages=16384, seed=seed)
        vfns = plan.vfns[0].astype(int)
        place = np.arange(len(vfns)) / len(vfns)
        start = int(rng.integers(N_PAGES))
        swept_at = (vfns - start) % N_PAGES  # writes until the sweep is at this page
        read = place * in_pass
        read_again = writes + place * in_pass
        dirty = (swept_at >= read) & (swept_at < read_again)
        found.append(dirty.mean() * N_PAGES)
    variance = WORKLOADS["sweep"].variance(
        N_PAGES, writes, len(vfns), strata=True, pass_writes=(in_pass, in_pass)
    )
    assert abs(np.mean(found) - writes) < 4.5 * np.sqrt(variance / 800)
    assert 0.6 < np.var(found) / variance < 1.3
