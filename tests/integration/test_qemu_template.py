# SPDX-License-Identifier: MIT
"""A guest cloned from a template file, as memory-backend-file,share=off makes one."""

import os

import numpy as np
import pytest
from real_qemu import PAGE_SIZE, Qemu

import pysampler
from pysampler.host.maps import read_maps
from pysampler.memory.source import named_block
from pysampler.sampling.plan import PROFILES, draw_plan
from pysampler.units import MIB

pytestmark = pytest.mark.integration

LENGTH = 128 * MIB
PER_SECOND = 5000


@pytest.mark.parametrize("seed", [1, 2])
def test_writes_to_a_clone_of_a_template_are_counted_as_they_are(tmp_path, seed):
    template = tmp_path / "template"
    rng = np.random.default_rng(seed)
    template.write_bytes(rng.bytes(LENGTH))
    arguments = (
        *("-machine", "pc,memory-backend=ram0", "-m", "128M", "-object"),
        f"memory-backend-file,id=ram0,size=128M,mem-path={template},share=off",
    )
    with Qemu(tmp_path, *arguments) as qemu:
        (mapping,) = (
            m for m in read_maps(qemu.pid) if m.name == str(template) and m.length == LENGTH
        )
        block = named_block(qemu.pid, f"ram0={mapping.start:#x}:128M")
        written: list[int] = []
        truth, known = [], 0
        vfns = draw_plan([LENGTH], profile=PROFILES["qemu"], sample_pages=16384, seed=seed).vfns[0]
        with (
            open(f"/proc/{qemu.pid}/mem", "r+b", buffering=0) as memory,
            pysampler.measure([block], calc_time=1, sample_pages=16384, seed=seed) as sampler,
        ):
            for vector in sampler:
                truth.append(int(np.isin(vfns, written).sum()))
                until = vector.periods[-1] + 125
                # Eight bytes that a random page has at its begin with a chance of 2^-64.
                for vfn in rng.integers(0, LENGTH // PAGE_SIZE, PER_SECOND * until // 1000 - known):
                    at = mapping.start + int(vfn) * PAGE_SIZE
                    written.append(int(vfn))
                    os.pwrite(memory.fileno(), b"written!", at)
                known = len(written)
    assert list(vector.n_dirty_pages) == truth
    assert truth[-1] > 100
    assert max(vector.details["unreadable"]) == vector.details["baseline"]["unreadable"] == 0
    assert template.stat().st_size == LENGTH
