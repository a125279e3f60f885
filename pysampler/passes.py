# SPDX-License-Identifier: MIT
"""The baseline pass and the compare passes over the samples of a plan."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pysampler import core
from pysampler.core import Hasher, PageState
from pysampler.reader import open_reader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pysampler.core import StateArray, VfnArray
    from pysampler.plan import SamplePlan
    from pysampler.ramblock import RAMBlock
    from pysampler.reader import Reader


class PassCount(NamedTuple):
    """What one pass found.

    Attributes:
        pages: zero pages of the baseline pass, dirty pages of a compare pass.
        unreadable: samples that could not be read without harm, or at all. Such a sample
            counts as it was seen last; one that was never seen yet counts as neither.
        changes: of a compare pass over strata: how often, in address order, a dirty sample
            follows a clean one or a clean one a dirty. The interval of strata needs it.
    """

    pages: int
    unreadable: int
    changes: int | None = None


@dataclass
class _Slice:
    """The samples of one block that one thread reads."""

    reader: Reader
    vfns: VfnArray
    order: NDArray[np.uint32]
    baseline: NDArray[np.uint64]
    seen: NDArray[np.bool_]
    dirty: NDArray[np.bool_]
    states: StateArray | None = None


class Passes:
    """Runs the passes of one measurement.

    Args:
        blocks: the RAMBlocks, in the plan's order.
        plan: the samples of each.
        hasher: the page hash.
        threads: how many threads read; each takes an equal share of every block.

    Raises:
        SourceError: a block cannot be opened.
    """

    def __init__(
        self, blocks: Sequence[RAMBlock], plan: SamplePlan, hasher: Hasher, threads: int
    ) -> None:
        self._hasher = hasher
        self._page_size = plan.page_size
        self._zero_hash = _hash_of_zero_page(hasher, plan.page_size)
        with ExitStack() as stack:
            self.readers: list[Reader] = []
            for block in blocks:
                reader = open_reader(block, plan.page_size)
                stack.callback(reader.close)
                self.readers.append(reader)
            self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
            if self._pool is not None:
                stack.callback(self._pool.shutdown)
            self._stack = stack.pop_all()
        self._slices = [
            _new_slice(reader, vfns)
            for reader, block_vfns in zip(self.readers, plan.vfns, strict=True)
            for vfns in np.array_split(block_vfns, threads)
            if len(vfns)
        ]
        self._by_address = _by_address(plan.vfns) if plan.stratified else None

    def warm_up(self) -> None:
        """Touch every sample once.

        The first touch of a page through a new mapping faults it in here, which takes longer
        than to read it. Were that left to the baseline pass, it would be slower than the compare
        passes, and the time between two reads of a page shorter than the period.
        """
        self._run(self._touch)

    def baseline(self) -> PassCount:
        """Hash every sample; count zero pages."""
        return self._run(self._hash_baseline)

    def compare(self) -> PassCount:
        """Hash every sample again; count those that differ from the baseline."""
        count = self._run(self._hash_and_compare)
        if self._by_address is None:
            return count
        # Slices stand in the order of the blocks' samples.
        dirty = np.concatenate([part.dirty for part in self._slices])[self._by_address]
        return count._replace(changes=int(np.count_nonzero(dirty[1:] != dirty[:-1])))

    def copy(self, n_pages: int) -> NDArray[np.uint8]:
        """Return what at most so many of the samples hold now, the same ones at each call.

        They are spread evenly over the samples. What cannot be read without harm comes as zeros.

        Returns:
            Shape pages x page size.
        """
        n_samples = sum(len(part.vfns) for part in self._slices)
        chosen = np.linspace(0, n_samples, min(n_pages, n_samples), endpoint=False).astype(int)
        copies = np.zeros((len(chosen), self._page_size), dtype=np.uint8)
        begin = 0
        for part in self._slices:
            mine = np.flatnonzero((begin <= chosen) & (chosen < begin + len(part.vfns)))
            for row, sample in zip(mine, chosen[mine] - begin, strict=True):
                if part.states is None or part.states[sample] == PageState.PRESENT:
                    content = part.reader.copy_page(int(part.vfns[sample]))
                    copies[row, : len(content)] = np.frombuffer(content, dtype=np.uint8)
            begin += len(part.vfns)
        return copies

    def close(self) -> None:
        """Close the readers; a second call does nothing."""
        self._stack.close()

    def _run(self, work: Callable[[_Slice], PassCount]) -> PassCount:
        for reader in self.readers:
            reader.begin_pass()
        run = map if self._pool is None else self._pool.map
        counts = list(run(work, self._slices))
        for reader in self.readers:
            reader.end_pass()
        return PassCount(sum(c.pages for c in counts), sum(c.unreadable for c in counts))

    def _touch(self, part: _Slice) -> PassCount:
        self._hash(part, Hasher(core.Hash.TOUCH))
        return PassCount(0, 0)

    def _hash_baseline(self, part: _Slice) -> PassCount:
        part.baseline, part.seen = self._hash(part, self._hasher)
        zero = np.count_nonzero(part.seen & (part.baseline == self._zero_hash))
        return PassCount(int(zero), _unseen(part.seen))

    def _hash_and_compare(self, part: _Slice) -> PassCount:
        hashes, seen = self._hash(part, self._hasher)
        # A sample that is seen for the first time only now has this as its baseline.
        late = seen & ~part.seen
        part.baseline[late] = hashes[late]
        part.seen |= seen
        part.dirty[seen] = hashes[seen] != part.baseline[seen]
        return PassCount(int(np.count_nonzero(part.dirty)), _unseen(seen))

    def _hash(self, part: _Slice, hasher: Hasher) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
        """Return the hash of each sample of a slice, and which of them were read."""
        hashes = np.full(len(part.vfns), self._zero_hash, dtype=np.uint64)
        seen = np.ones(len(part.vfns), dtype=np.bool_)
        part.states = part.reader.states(part.vfns, part.order)
        if part.states is None or not part.states.any():
            read = np.arange(len(part.vfns))
            vfns, found = part.vfns, hashes
        else:
            read = np.flatnonzero(part.states == PageState.PRESENT)
            vfns, found = part.vfns[read], hashes[read]
            seen[part.states > PageState.HOLE] = False
        done = 0
        while done < len(vfns):
            done += part.reader.hash_pages(hasher, vfns[done:], found[done:])
            if done < len(vfns):
                part.reader.end_pass()  # where the whole block has gone, this says so
                seen[read[done]] = False
                done += 1
        hashes[read] = found
        return hashes, seen


def _new_slice(reader: Reader, vfns: VfnArray) -> _Slice:
    return _Slice(
        reader=reader,
        vfns=np.ascontiguousarray(vfns),
        order=np.argsort(vfns, kind="stable").astype(np.uint32),
        baseline=np.zeros(len(vfns), dtype=np.uint64),
        seen=np.zeros(len(vfns), dtype=np.bool_),
        dirty=np.zeros(len(vfns), dtype=np.bool_),
    )


def _by_address(vfns: Sequence[VfnArray]) -> NDArray[np.intp]:
    """Return the order that sorts the samples of all blocks by block and address."""
    begins = np.cumsum([0, *(len(of_block) for of_block in vfns)])
    orders = [begin + np.argsort(of_block) for begin, of_block in zip(begins, vfns, strict=False)]
    return np.concatenate(orders)


def _unseen(seen: NDArray[np.bool_]) -> int:
    return int(len(seen) - np.count_nonzero(seen))


def _hash_of_zero_page(hasher: Hasher, page_size: int) -> np.uint64:
    hashes = np.empty(1, dtype=np.uint64)
    core.hash_mapped(hasher, bytes(page_size), page_size, np.zeros(1, dtype=np.uint64), hashes)
    return np.uint64(hashes[0])
