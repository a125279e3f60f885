# SPDX-License-Identifier: MIT
"""The baseline pass and the compare passes over the samples of a plan."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pysampler import core
from pysampler.core import Hasher, PageState
from pysampler.errors import FaultError
from pysampler.memory.reader import open_reader
from pysampler.memory.reader.opened import Opened
from pysampler.sampling.workers import LOOK_EVERY_S, PATIENCE, Part, Result, StuckError, Workers
from pysampler.vector.unreadable import CAUSES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pysampler.core import StateArray, VfnArray
    from pysampler.memory.ramblock import RAMBlock
    from pysampler.memory.reader import Reader
    from pysampler.sampling.plan import SamplePlan


class PassCount(NamedTuple):
    """What one pass found.

    Attributes:
        pages: zero pages of the baseline pass, dirty pages of a compare pass.
        unreadable: samples that could not be judged. In the baseline pass these are the samples
            that were not read. In a compare pass they are the samples that could not be compared
            with the baseline: not known to be dirty, and not read either then or now.
        changes: for a compare pass over strata: how often, in address order, a dirty sample
            follows a clean one or the reverse. The interval of strata needs it.
        causes: number of unreadable samples by cause, with the names of CAUSES.
    """

    pages: int
    unreadable: int
    changes: int | None = None
    causes: Mapping[str, int] = MappingProxyType({})


@dataclass
class _Slice:
    """The samples of one block that one thread reads.

    Attributes:
        reference: hash of each sample at its first reading.
        has_reference: whether it has been read.
        in_baseline: whether the baseline pass read it, so that the reference is the baseline's.
        dirty: whether it differed from the reference at its last reading.
        states: of the last pass.
        causes: its state when it was last found unreadable.
    """

    idstr: str
    reader: Reader
    vfns: VfnArray
    order: NDArray[np.uint32]
    reference: NDArray[np.uint64]
    has_reference: NDArray[np.bool_]
    in_baseline: NDArray[np.bool_]
    dirty: NDArray[np.bool_]
    states: StateArray
    causes: StateArray


# What a slice adds to a pass: its count of pages, and how many are unreadable by PageState.
_PartCount = tuple[int, "NDArray[np.intp]"]


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
        self._workers = Workers(threads)
        with ExitStack() as stack:
            opened = Opened()
            stack.callback(opened.close)
            self.readers: list[Reader] = []
            for block in blocks:
                reader = open_reader(block, plan.page_size, opened)
                stack.callback(reader.close)
                self.readers.append(reader)
            self._stack = stack.pop_all()
        self._slices = [
            _new_slice(block.idstr, reader, vfns)
            for block, reader, block_vfns in zip(blocks, self.readers, plan.vfns, strict=True)
            for vfns in np.array_split(block_vfns, threads)
            if len(vfns)
        ]
        self._by_address = _by_address(plan.vfns) if plan.stratified else None

    def warm_up(self) -> None:
        """Touch every sample once.

        The first touch of a page through a new mapping faults it in here. That takes longer than
        reading it. In the baseline pass it would make that pass slower than the compare passes.
        Then the time between two reads of a page would be shorter than the period.
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
        """Return the present content of at most so many samples, the same ones at each call.

        They are spread evenly over the samples. Pages that cannot be read without harm come as
        zeros.

        Returns:
            Shape pages x page size.
        """
        return self._in_threads(self._copy, [n_pages])[0]

    def _copy(self, n_pages: int) -> NDArray[np.uint8]:
        n_samples = sum(len(part.vfns) for part in self._slices)
        chosen = np.linspace(0, n_samples, min(n_pages, n_samples), endpoint=False).astype(int)
        copies = np.zeros((len(chosen), self._page_size), dtype=np.uint8)
        begin = 0
        for part in self._slices:
            mine = np.flatnonzero((begin <= chosen) & (chosen < begin + len(part.vfns)))
            for row, sample in zip(mine, chosen[mine] - begin, strict=True):
                if part.states[sample] == PageState.PRESENT:
                    content = part.reader.copy_page(int(part.vfns[sample]))
                    copies[row, : len(content)] = np.frombuffer(content, dtype=np.uint8)
            begin += len(part.vfns)
        return copies

    def close(self) -> None:
        """Close the readers; a second call does nothing.

        A thread that was given up may still read; its files are closed with the last reference.
        """
        if self._workers.are_idle:
            self._stack.close()

    def _run(self, work: Callable[[_Slice], _PartCount]) -> PassCount:
        for reader in self.readers:
            reader.begin_pass()
        parts = self._in_threads(work, self._slices)
        for reader in self.readers:
            reader.end_pass()
        by_state = sum((part[1] for part in parts), np.zeros(len(PageState), dtype=np.intp))
        return PassCount(
            sum(part[0] for part in parts),
            int(by_state.sum()),
            causes={CAUSES[state]: int(by_state[state]) for state in CAUSES if by_state[state]},
        )

    def _in_threads(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        try:
            return self._workers.run(work, parts)
        except StuckError as error:
            idstr = self._slices[error.part].idstr
            raise FaultError(
                f"RAMBlock {idstr}: a page could not be read for {PATIENCE * LOOK_EVERY_S:g} s: it"
                " is missing under userfaultfd and nobody fills it, or its storage does not answer",
                idstr=idstr,
            ) from error

    def _touch(self, part: _Slice) -> _PartCount:
        self._hash(part, Hasher(core.Hash.TOUCH))
        return 0, _by_state(part.states[:0])

    def _hash_baseline(self, part: _Slice) -> _PartCount:
        part.reference = self._hash(part, self._hasher)
        part.in_baseline = part.states <= PageState.HOLE
        part.has_reference = part.in_baseline.copy()
        part.causes = part.states.copy()
        zero = np.count_nonzero(part.in_baseline & (part.reference == self._zero_hash))
        return int(zero), _by_state(part.states[~part.in_baseline])

    def _hash_and_compare(self, part: _Slice) -> _PartCount:
        hashes = self._hash(part, self._hasher)
        seen = part.states <= PageState.HOLE
        np.copyto(part.causes, part.states, where=~seen)
        # A sample that is seen for the first time only now may have been written before. What it
        # holds now tells of later writes, but it is never clean.
        np.copyto(part.reference, hashes, where=seen & ~part.has_reference)
        part.has_reference |= seen
        np.copyto(part.dirty, hashes != part.reference, where=seen)
        unknown = ~part.dirty & ~(seen & part.in_baseline)
        return int(np.count_nonzero(part.dirty)), _by_state(part.causes[unknown])

    def _hash(self, part: _Slice, hasher: Hasher) -> NDArray[np.uint64]:
        """Return the hash of each sample of a slice; its states say which of them were read."""
        hashes = np.full(len(part.vfns), self._zero_hash, dtype=np.uint64)
        states = part.reader.states(part.vfns, part.order)
        part.states = np.zeros(len(part.vfns), dtype=np.uint8) if states is None else states
        if not part.states.any():
            read = np.arange(len(part.vfns))
            vfns, found = part.vfns, hashes
        else:
            read = np.flatnonzero(part.states == PageState.PRESENT)
            vfns, found = part.vfns[read], hashes[read]
        done = 0
        while done < len(vfns):
            done += part.reader.hash_pages(hasher, vfns[done:], found[done:])
            if done < len(vfns):
                part.reader.check()  # where the whole block has gone, this says so
                part.states[read[done]] = PageState.CLOSED
                done += 1
        hashes[read] = found
        return hashes


def _new_slice(idstr: str, reader: Reader, vfns: VfnArray) -> _Slice:
    n = len(vfns)
    return _Slice(
        idstr=idstr,
        reader=reader,
        vfns=np.ascontiguousarray(vfns),
        order=np.argsort(vfns, kind="stable").astype(np.uint32),
        reference=np.zeros(n, dtype=np.uint64),
        has_reference=np.zeros(n, dtype=np.bool_),
        in_baseline=np.zeros(n, dtype=np.bool_),
        dirty=np.zeros(n, dtype=np.bool_),
        states=np.zeros(n, dtype=np.uint8),
        causes=np.zeros(n, dtype=np.uint8),
    )


def _by_state(states: StateArray) -> NDArray[np.intp]:
    """Return how many samples are in each PageState."""
    return np.bincount(states, minlength=len(PageState))


def _by_address(vfns: Sequence[VfnArray]) -> NDArray[np.intp]:
    """Return the order that sorts the samples of all blocks by block and address."""
    begins = np.cumsum([0, *(len(of_block) for of_block in vfns)])
    orders = [begin + np.argsort(of_block) for begin, of_block in zip(begins, vfns, strict=False)]
    return np.concatenate(orders)


def _hash_of_zero_page(hasher: Hasher, page_size: int) -> np.uint64:
    hashes = np.empty(1, dtype=np.uint64)
    core.hash_mapped(hasher, bytes(page_size), page_size, np.zeros(1, dtype=np.uint64), hashes)
    return np.uint64(hashes[0])
