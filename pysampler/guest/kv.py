# SPDX-License-Identifier: MIT
"""A memcached-like store: slabs of 1 MiB, chunks of rising size, YCSB's mixes of operations.

Mixes, after B. F. Cooper et al., "Benchmarking cloud serving systems with YCSB", SoCC 2010:

===  ==========================================================  ==========
mix  operations                                                  keys
===  ==========================================================  ==========
A    50 % reads, 50 % updates                                    zipfian
B    95 % reads, 5 % updates                                     zipfian
C    100 % reads                                                 zipfian
D    95 % reads, 5 % inserts, each in place of the oldest key    the latest
F    50 % reads, 50 % reads followed by an update                zipfian
===  ==========================================================  ==========

The writes of an operation; each page that it writes counts as one write:

- a read writes the item's header and leaves it as it was, for memcached takes a reference and
  drops it: tracking of writes sees a dirty page there, sampling of content does not;
- an update or insert never writes in place. It stores header, key and value into the chunk of
  that slab class that was freed last, and then links the old chunk into the free list.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from pysampler.core import KvStore, KvWrite
from pysampler.errors import UsageError
from pysampler.units import MIB, format_size, parse_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SLAB = MIB
# memcached's defaults: growth factor 1.25, the smallest chunk 96 bytes.
_FIRST_CHUNK, _GROWTH = 96, 1.25
# Item header with CAS (56 bytes) and a key such as YCSB's "user" with 19 digits.
_OVERHEAD = 56 + 24
_MAX_VALUE = 256 * 1024
_MAX_KEYS = 16_000_000
_DEFAULT_KEYS = 4_000_000
_VALUE_THETA = 0.99

# mix -> share of reads in percent, and what the others do
_MIXES = {
    "A": (50, KvWrite.UPDATE),
    "B": (95, KvWrite.UPDATE),
    "C": (100, KvWrite.UPDATE),
    "D": (95, KvWrite.INSERT),
    "F": (50, KvWrite.MODIFY),
}


@dataclass(frozen=True, slots=True)
class KvOptions:
    """A store that is asked for.

    Attributes:
        mix: A, B, C, D or F.
        keys: how many; None for as many as fit into the working set, at most 4 million.
        value: smallest and largest value in bytes. In between, sizes are zipfian, the smallest
            the most frequent.
    """

    mix: str = "A"
    keys: int | None = None
    value: tuple[int, int] = (1000, 1000)

    def __post_init__(self) -> None:
        if self.mix not in _MIXES:
            raise UsageError(f"workload kv: mix={self.mix[:40]} is none of {', '.join(_MIXES)}")
        if self.keys is not None and not 2 <= self.keys <= _MAX_KEYS:
            raise UsageError(f"workload kv: keys={self.keys} is not from 2 to {_MAX_KEYS}")


def parse_sizes(text: str, what: str) -> tuple[int, int]:
    """Return the sizes of ``1000`` or ``64-4096``, bytes.

    Raises:
        UsageError: not such sizes.
    """
    low, dash, high = text.partition("-")
    sizes = parse_size(low, what), parse_size(high if dash else low, what)
    if not 1 <= sizes[0] <= sizes[1] <= _MAX_VALUE:
        raise UsageError(f"{what}: {text[:40]} is not within 1-256K, smallest first")
    return sizes


@cache
def lay_out(options: KvOptions, ws: int, seed: int) -> KvStore:
    """Load the keys, in order, into the slabs of a working set of ``ws`` bytes.

    Raises:
        UsageError: the keys do not fit.
    """
    n = options.keys or min(_DEFAULT_KEYS, most_keys(ws))
    if n > most_keys(ws):  # before memory is taken for them
        raise _too_large(options, ws)
    chunks = _chunk_sizes()
    n_slabs = ws // _SLAB
    item_bytes = _value_sizes(options.value, n, seed) + _OVERHEAD
    item_class = np.searchsorted(chunks, item_bytes)
    per_slab = _SLAB // chunks[item_class]

    # A class's chunks are numbered in order of use; number 0 stays free for the first update.
    by_class = np.argsort(item_class, kind="stable")
    starts = np.searchsorted(item_class[by_class], np.arange(len(chunks)))
    number = np.empty(n, dtype=np.int64)
    number[by_class] = np.arange(n) - starts[item_class[by_class]] + 1
    opens_slab = (number == 1) | (number % per_slab == 0)
    slabs_open = np.cumsum(opens_slab)
    fit = int(np.searchsorted(slabs_open, n_slabs, side="right"))
    if fit < (options.keys or 2):
        raise _too_large(options, ws)
    # In order of class, each item lies in the slab that was opened last.
    opened = np.maximum.accumulate(np.where(opens_slab[by_class], np.arange(n), 0))
    slab = np.empty(n, dtype=np.int64)
    slab[by_class] = (slabs_open[by_class] - 1)[opened]
    item_at = slab * _SLAB + number % per_slab * chunks[item_class]
    free_at = np.zeros(len(chunks), dtype=np.uint64)
    first = (number == 1).nonzero()[0]
    free_at[item_class[first]] = slab[first] * _SLAB

    percent, write = _MIXES[options.mix]
    return KvStore(
        item_at=item_at[:fit].astype(np.uint64),
        item_bytes=item_bytes[:fit].astype(np.uint32),
        item_class=item_class[:fit].astype(np.uint8),
        free_at=free_at,
        reads=min(percent * (1 << 64) // 100, (1 << 64) - 1),
        write=write,
    )


def most_keys(ws: int) -> int:
    """Return how many keys a store can have at most in a working set of ``ws`` bytes."""
    return min(_MAX_KEYS, ws // _FIRST_CHUNK)


def most_entries(ws: int) -> int:
    """Return how long `item_at` and `free_at` of such a store can be together."""
    return most_keys(ws) + len(_chunk_sizes())


def _too_large(options: KvOptions, ws: int) -> UsageError:
    return UsageError(
        f"workload kv: {options.keys or 2} keys of up to {options.value[1]} bytes do not fit "
        f"into a working set of {format_size(ws)}"
    )


def _chunk_sizes() -> NDArray[np.int64]:
    sizes = [_FIRST_CHUNK]
    while sizes[-1] < _MAX_VALUE + _OVERHEAD:
        sizes.append(int(sizes[-1] * _GROWTH + 7) // 8 * 8)
    return np.array(sizes, dtype=np.int64)


def _value_sizes(limits: tuple[int, int], n: int, seed: int) -> NDArray[np.int64]:
    low, high = limits
    cumulative = np.cumsum(np.arange(1, high - low + 2) ** -_VALUE_THETA)
    uniform = np.random.default_rng(seed).random(n) * cumulative[-1]
    sizes: NDArray[np.int64] = low + np.searchsorted(cumulative, uniform).clip(max=high - low)
    return sizes
