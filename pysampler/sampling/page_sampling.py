# SPDX-License-Identifier: MIT
"""The observer that hashes a sample of the pages."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from pysampler.core import Hasher
from pysampler.errors import SourceError, UsageError
from pysampler.qemu.dirty_rate import MIN_USED_LENGTH, PAGE_SIZE, SAMPLE_PAGES_MAX
from pysampler.sampling.observer import check_threads
from pysampler.sampling.passes import Passes
from pysampler.sampling.plan import Profile, draw_plan
from pysampler.units import GIB
from pysampler.vector.measurement import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pysampler.memory.ramblock import RAMBlock
    from pysampler.sampling.passes import PassCount


class PageSampling:
    """Observer that hashes a sample of the pages; SPEC of mode ``page-sampling``.

    Args:
        blocks: what to sample; blocks below 128 KiB are skipped.
        profile: how to draw and hash.
        sample_pages: samples per GiB, 128 to 16384; None for the profile's own.
        seed: repeats a draw; None for a new one.
        threads: reading threads.

    Raises:
        UsageError: a number is out of range.
        SourceError: there is nothing to sample, or a block cannot be read.
    """

    mode = Mode.PAGE_SAMPLING

    def __init__(
        self,
        blocks: Sequence[RAMBlock],
        *,
        profile: Profile,
        sample_pages: int | None = None,
        seed: int | None = None,
        threads: int = 1,
    ) -> None:
        check_threads(threads)
        if seed is not None and not 0 <= seed < 1 << 64:
            raise UsageError(f"seed must be between 0 and 2^64 - 1 (got {seed})")
        self._profile = profile
        self._threads = threads
        self._blocks = [block for block in blocks if block.used_length >= MIN_USED_LENGTH]
        if not self._blocks:
            raise SourceError("there is no RAMBlock of at least 128 KiB to sample")
        self.plan = draw_plan(
            [block.used_length for block in self._blocks],
            profile=profile,
            sample_pages=profile.sample_pages if sample_pages is None else sample_pages,
            seed=secrets.randbits(64) if seed is None else seed,
            page_size=PAGE_SIZE,
        )
        self.sample_pages = self.plan.sample_pages
        self.n_total_pages = self.plan.n_total_pages
        self.n_sampled_pages = self.plan.n_sampled_pages
        if self.n_sampled_pages == 0:
            raise SourceError(_too_few_samples(self._blocks, self.sample_pages))
        self._hasher = Hasher(profile.hash)
        self._passes = Passes(self._blocks, self.plan, self._hasher, threads)

    def warm_up(self) -> None:
        """Touch every sample once, so that the baseline takes no longer than a comparison."""
        self._passes.warm_up()

    def baseline(self) -> PassCount:
        """Hash every sample; count zero pages."""
        return self._passes.baseline()

    def compare(self) -> PassCount:
        """Hash every sample again; count those that differ from the baseline."""
        return self._passes.compare()

    def copy(self, n_pages: int) -> NDArray[np.uint8]:
        """Return the present content of at most so many samples, as `Passes.copy` does."""
        return self._passes.copy(n_pages)

    def close(self) -> None:
        """Close the readers; a second call does nothing."""
        self._passes.close()

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return nothing: a page does not show its writer."""
        return ()

    def details(self) -> dict[str, Any]:
        """Return profile, hash, seed, threads and how each block is read."""
        return {
            "profile": self._profile.name,
            "hash": self._profile.hash.name.lower(),
            "seed": self.plan.seed,
            "threads": self._threads,
            "blocks": [
                {
                    "idstr": block.idstr,
                    "used-length": block.used_length,
                    "page-size": block.page_size,
                    "access": reader.access,
                    "n-sampled-pages": len(vfns),
                }
                for block, reader, vfns in zip(
                    self._blocks, self._passes.readers, self.plan.vfns, strict=True
                )
            ],
        }


def _too_few_samples(blocks: Sequence[RAMBlock], sample_pages: int) -> str:
    longest = max(block.used_length for block in blocks)
    needed = -(-GIB // longest)
    cure = (
        f"raise sample-pages to {needed} or more"
        if needed <= SAMPLE_PAGES_MAX
        else "there is too little memory"
    )
    return f"{sample_pages} sample-pages per GiB give no sample in {longest} bytes: {cure}"
