"""Rows as an experiment would give them: noise of the right size, and faults on demand."""

import dataclasses

import numpy as np

from pysampler.units import GIB
from pysampler.validation.row import Row

CALC_TIMES_MS = (100, 200, 300, 400, 500, 750, 1000, 1500, 2000)


def simulate(
    rng,
    *,
    method="fast",
    size=4 * GIB,
    workload="uniform",
    wps=3_000_000.0,
    asked_wps=3_000_000,
    calc_times_ms=CALC_TIMES_MS,
    repeats=1,
    baseline_ms=8.0,
    compare_ms=8.0,
    pass_speed=1.0,
    late_ms=0.02,
    counts_late=False,
):
    """Return rows of a sampler that estimates without bias what lies between its reads.

    Args:
        rng: a numpy generator.
        wps: the writer's real speed.
        baseline_ms, compare_ms: duration of the passes.
        pass_speed: the writer's speed during the compare pass, as a part of wps.
        late_ms: how late compare passes begin.
        counts_late: writes are counted late_ms after the samples are read.
    """
    rows = []
    n_sampled = size * 16384 // GIB
    for repeat in range(repeats):
        for calc_time_ms in calc_times_ms:
            seconds = (calc_time_ms + late_ms) / 1000
            writes = round(wps * seconds)
            in_baseline = round(wps * baseline_ms / 1000)
            in_compare = round(wps * compare_ms / 1000 * pass_speed)
            row = Row(
                workload=workload,
                size=size,
                calc_time_ms=calc_time_ms,
                method=method,
                repeat=repeat,
                sample_pages=16384,
                asked_wps=asked_wps,
                idle_wps=wps,
                seconds=seconds,
                writes=writes,
                baseline_seconds=baseline_ms / 1000,
                baseline_writes=in_baseline,
                compare_seconds=compare_ms / 1000,
                compare_writes=in_compare,
                n_sampled_pages=n_sampled,
                n_dirty_pages=0,
                truth_pages=0,
                truth_writes=writes,
            )
            between_reads = writes + (in_compare - in_baseline) / 2
            if counts_late:
                between_reads -= wps * late_ms / 1000
            mean = row.expected(between_reads)
            estimate = min(max(rng.normal(mean, row.sd), 0), row.n_pages)
            rows.append(
                dataclasses.replace(
                    row,
                    n_dirty_pages=round(estimate / row.n_pages * n_sampled),
                    truth_pages=round(row.theory),
                )
            )
    return rows


def generator(seed):
    return np.random.default_rng([seed, 41])
