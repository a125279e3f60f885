# SPDX-License-Identifier: MIT
"""Observer: the interface to page sampling and exact tracking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pysampler.arguments import as_whole_number
from pysampler.errors import UsageError

if TYPE_CHECKING:
    from pysampler.sampling.passes import PassCount
    from pysampler.vector.measurement import Mode

THREADS_MAX = 256


class Observer(Protocol):
    """Watches memory and counts its dirty pages, by sampling or exact tracking.

    Attributes:
        mode: how it finds dirty pages.
        n_total_pages: pages of all RAMBlocks.
        n_sampled_pages: pages it watches.
        sample_pages: samples per GiB; 0 where every page is watched.
    """

    mode: Mode
    n_total_pages: int
    n_sampled_pages: int
    sample_pages: int

    def warm_up(self) -> None:
        """Prepare, so that the baseline takes no longer than a comparison."""

    def baseline(self) -> PassCount:
        """Begin to watch; count zero pages."""

    def compare(self) -> PassCount:
        """Count the pages that are dirty since the baseline."""

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return (vCPU number, dirty pages) as of the last comparison, where that is known."""

    def details(self) -> dict[str, Any]:
        """Return its members of ``x-pysampler``."""

    def close(self) -> None:
        """Release the memory and all descriptors; a second call does nothing."""


def check_threads(threads: int) -> int:
    """Return a number of threads as an int; raise UsageError when it is none or out of range."""
    threads = as_whole_number(threads, "threads")
    if not 1 <= threads <= THREADS_MAX:
        raise UsageError(f"threads must be between 1 and {THREADS_MAX} (got {threads})")
    return threads
