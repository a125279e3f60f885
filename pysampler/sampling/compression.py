# SPDX-License-Identifier: MIT
"""Compression of pages, which a prediction of a compressed migration needs.

This measures ratio and speed of codecs on sampled pages: on all of them, and on the dirtied ones.
It also measures the length of a dirtied page when only its changes are sent (XBZRLE).

XBZRLE, as QEMU's docs/devel/migration describe it: a page is a sequence of a zero run (bytes that
did not change) and a non-zero run (bytes that did), each with its length as ULEB128 before it and
the new bytes after that of the non-zero run; a zero run at the end is left out.
"""

from __future__ import annotations

import sys
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler.errors import MissingFeatureError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pysampler.sampling.page_sampling import PageSampling
    from pysampler.sampling.passes import PassCount

    Pages = NDArray[np.uint8]

CODECS = ("lz4", "zstd", "zlib")
# Enough for a mean to about 2 %; copying and comparing them takes a few ms of each period.
MAX_PAGES = 512
_QUANTILES = (0.05, 0.5, 0.95)


def _codec(name: str) -> Callable[[bytes], bytes]:
    """Return a compressor as QEMU uses it: level 1 of zstd and zlib.

    Raises:
        MissingFeatureError: its library is not there.
        UsageError: there is no such codec.
    """
    try:
        if name == "lz4":
            import lz4.block  # noqa: PLC0415 - an extra

            return lambda data: bytes(lz4.block.compress(data, store_size=False))
        if name == "zstd":
            if sys.version_info >= (3, 14):
                from compression import zstd  # noqa: PLC0415 - not in every build of Python
            else:
                from backports import zstd  # noqa: PLC0415 - an extra

            # One compressor for all pages: a new one for each would take as long as the page.
            compressor = zstd.ZstdCompressor(level=1)
            return lambda data: compressor.compress(data, compressor.FLUSH_FRAME)
    except ImportError:
        raise MissingFeatureError(
            f"{name} needs a library: pip install pysampler[compression]"
        ) from None
    if name == "zlib":
        return lambda data: zlib.compress(data, 1)
    raise UsageError(f"measure-compression: {name[:24]!r} is not one of {', '.join(CODECS)}")


def parse_codecs(text: str) -> tuple[str, ...]:
    """Return the codecs of ``lz4,zstd``, each once.

    Raises:
        UsageError: there is no such codec.
        MissingFeatureError: a library is not there.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        _codec(name)
    return names


@dataclass(frozen=True, slots=True)
class CodecFigures:
    """A codec on some pages.

    Attributes:
        ratios: compressed over original size of each page; 1 where it does not shrink.
        seconds: to compress all of them.
        page_size: bytes.
    """

    ratios: NDArray[np.float64]
    seconds: float
    page_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object: ratio, its quantiles, and bytes of pages per second."""
        low, median, high = (round(float(q), 4) for q in np.quantile(self.ratios, _QUANTILES))
        return {
            "pages": len(self.ratios),
            "ratio-mean": round(float(self.ratios.mean()), 4),
            "ratio-p5": low,
            "ratio-median": median,
            "ratio-p95": high,
            "bytes-per-s": round(len(self.ratios) * self.page_size / max(self.seconds, 1e-9)),
        }


def compress_pages(codec: str, pages: Pages) -> CodecFigures:
    """Compress each page by itself.

    Args:
        codec: lz4, zstd or zlib.
        pages: shape pages x page size, at least one page.
    """
    compress = _codec(codec)
    contents = [page.tobytes() for page in pages]
    started = time.perf_counter()
    lengths = [len(compress(content)) for content in contents]
    seconds = time.perf_counter() - started
    page_size = pages.shape[1]
    # A page that grows is sent as it is.
    ratios = np.minimum(1.0, np.asarray(lengths, dtype=np.float64) / page_size)
    return CodecFigures(ratios, seconds, page_size)


def xbzrle_lengths(before: Pages, after: Pages) -> NDArray[np.int64]:
    """Return the XBZRLE length of each page; 0 where nothing changed.

    Each changed run costs its bytes and two ULEB128 lengths, that of the unchanged run before
    it and its own. A page whose encoding would be as long as itself is sent whole: its length is
    the page size.

    Args:
        before: the pages as the destination has them, shape pages x page size.
        after: the pages as they are.
    """
    changed = before != after
    page_size = changed.shape[1]
    edges = np.diff(np.pad(changed, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lengths = np.zeros(len(changed), dtype=np.int64)
    page, starts = np.nonzero(edges == 1)
    _, ends = np.nonzero(edges == -1)
    # Where the run before this one ended; 0 for the first of a page.
    previous = np.where(np.diff(page, prepend=-1) == 0, np.roll(ends, 1), 0)
    cost = _uleb128(starts - previous) + _uleb128(ends - starts) + (ends - starts)
    np.add.at(lengths, page, cost)
    return np.asarray(np.minimum(lengths, page_size))


def _uleb128(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many bytes of seven bits each value takes."""
    return np.asarray(1 + (values >= 1 << 7) + (values >= 1 << 14) + (values >= 1 << 21))


class CompressionProbe:
    """Watches some of the sampled pages through one measurement.

    Call `baseline` with what the pages hold in the baseline pass, `period` with what the same pages
    hold in each compare pass, and `result` at any time.

    Args:
        codecs: names of `CODECS`.
    """

    def __init__(self, codecs: Sequence[str]) -> None:
        for codec in codecs:
            _codec(codec)
        self._codecs = tuple(codecs)
        self._baseline: Pages = np.zeros((0, 0), dtype=np.uint8)
        self._last: Pages = self._baseline
        self._periods: list[dict[str, Any]] = []

    def baseline(self, pages: Pages) -> None:
        """Begin with pages of shape pages x page size."""
        self._baseline = self._last = pages
        self._periods = []

    def period(self, pages: Pages) -> None:
        """Compare pages of the same shape with the baseline."""
        if pages.shape != self._baseline.shape:
            raise ValueError(f"pages of shape {pages.shape}, not {self._baseline.shape}")
        self._last = pages
        dirty = self._dirty()
        figures: dict[str, Any] = {"dirty-pages": int(np.count_nonzero(dirty))}
        if dirty.any():
            lengths = xbzrle_lengths(self._baseline[dirty], pages[dirty])
            low, median, high = (round(float(q)) for q in np.quantile(lengths, _QUANTILES))
            figures |= {
                "xbzrle-bytes-mean": round(float(lengths.mean()), 1),
                "xbzrle-bytes-p5": low,
                "xbzrle-bytes-median": median,
                "xbzrle-bytes-p95": high,
                "overflows": int(np.count_nonzero(lengths == pages.shape[1])),
            }
        self._periods.append(figures)

    def _dirty(self) -> NDArray[np.bool_]:
        return np.asarray((self._last != self._baseline).any(axis=1))

    def result(self) -> dict[str, Any]:
        """Return the ``compression`` member of ``x-pysampler``.

        Zero pages are left out of ``all``: a migration finds them before it compresses.
        """
        codecs: dict[str, Any] = {}
        groups = {"all": self._last[self._last.any(axis=1)], "dirtied": self._last[self._dirty()]}
        for codec in self._codecs:
            codecs[codec] = {
                name: compress_pages(codec, pages).to_dict()
                for name, pages in groups.items()
                if len(pages)
            }
        return {"pages": len(self._baseline), "codecs": codecs, "xbzrle": self._periods}


class CompressedSampling:
    """Observer that samples pages and how well they compress.

    The codecs run after the last period only: they would make the passes late.

    Args:
        sampling: what samples; closed with this one.
        codecs: names of `CODECS`.
        n_periods: of the measurement.
    """

    def __init__(self, sampling: PageSampling, codecs: Sequence[str], n_periods: int) -> None:
        self._sampling, self._probe = sampling, CompressionProbe(codecs)
        self._left = n_periods
        self.mode = sampling.mode
        self.n_total_pages = sampling.n_total_pages
        self.n_sampled_pages = sampling.n_sampled_pages
        self.sample_pages = sampling.sample_pages

    def warm_up(self) -> None:
        """Touch every sample once, so that the baseline takes no longer than a comparison."""
        self._sampling.warm_up()

    def baseline(self) -> PassCount:
        """Sample, and keep some pages."""
        count = self._sampling.baseline()
        self._probe.baseline(self._sampling.copy(MAX_PAGES))
        return count

    def compare(self) -> PassCount:
        """Sample, and compare the pages kept."""
        count = self._sampling.compare()
        self._probe.period(self._sampling.copy(MAX_PAGES))
        self._left -= 1
        return count

    def vcpu_pages(self) -> tuple[tuple[int, int], ...]:
        """Return nothing: who wrote a page does not show in a sample."""
        return self._sampling.vcpu_pages()

    def close(self) -> None:
        """Close the sampling."""
        self._sampling.close()

    def details(self) -> dict[str, Any]:
        """Return the sampling's details, and ``compression`` when the measurement is complete."""
        details = self._sampling.details()
        return details if self._left > 0 else {**details, "compression": self._probe.result()}
