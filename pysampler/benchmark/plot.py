# SPDX-License-Identifier: MIT
"""The hashing benchmark as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.figure import Figure

    from pysampler.benchmark.hashing import HashCase, Result


def draw_results(results: Sequence[Result], facts: dict[str, Any]) -> Figure:
    """Return a figure of ns per page by hash and way of reading."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and an extra

    series: dict[str, Callable[[HashCase], bool]] = {
        "in cache": lambda case: not case.cold,
        "cold": lambda case: _plain_cold(case) and not case.prefetch,
        "cold, prefetch": lambda case: _plain_cold(case) and case.prefetch,
        "process_vm_readv": lambda case: case.remote,
    }
    names = list(dict.fromkeys(result.case.hash for result in results))
    figure = Figure(figsize=(8, 0.55 * len(names) + 1.8), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(series)
    for which, (label, wanted) in enumerate(series.items()):
        found = [result for result in results if wanted(result.case)]
        axes.barh(
            [names.index(result.case.hash) + which * height for result in found],
            [result.ns_per_page for result in found],
            height,
            xerr=[result.spread * result.ns_per_page for result in found],
            label=label,
            color=f"C{which}",
            error_kw={"lw": 0.8},
        )
    axes.set_yticks([i + 1.5 * height for i in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("ns per 4 KiB page; bars: median, whiskers: half the interquartile range")
    axes.set_title(
        f"{facts['cpu']}, Linux {facts['kernel']}, zlib {facts['zlib']}, {facts['simd']}",
        fontsize="medium",
    )
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    return figure


def _plain_cold(case: HashCase) -> bool:
    return case.cold and not (case.huge or case.remote or case.threads > 1)
