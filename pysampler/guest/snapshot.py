# SPDX-License-Identifier: MIT
"""A guest's state as bytes: how far each vCPU is in its sequence of writes, and the guest's clock.

A guest that loads the state of another one, and has its RAM, goes on with the very sequence of
writes that the other one would have made. RAM itself is not part of it, nor is the throttle, which
decides when a write happens, not which.

Phases and seed are part of it. A guest that waits for an incoming migration takes them over, so it
need not have been started with them. Any other guest must have them already.

The bytes are one line of JSON in ASCII, then for each vCPU with a store, in order, its index:
`item_at` and `free_at`, numbers of 64 bits, the lowest byte first. They may come from anyone.
All is checked before any of it is used, against the layout that the guest itself has.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pysampler.core import KvState, Pattern, VcpuState
from pysampler.errors import FormatError, StateError, UsageError
from pysampler.guest.kv import most_entries
from pysampler.guest.phases import Phases
from pysampler.guest.ram import PAGE_SIZE, named
from pysampler.guest.run_state import RunState
from pysampler.guest.vcpu import store_of, working_set
from pysampler.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pysampler.core import KvStore
    from pysampler.guest.guest import Guest
    from pysampler.guest.vcpu import VcpuThread

VERSION = 2

# 255 vCPUs and 64 blocks take less than 256 KiB, the rest is for phases.
_MAX_HEADER = 1 << 22
# So many different stores a guest takes over: to lay one out takes memory and time.
_MAX_STORES = 16
_MAX_CLOCK_NS = 1 << 62
_MAX_WRITES = (1 << 48) - 1  # a write's mark holds no more
_MAX_U64 = (1 << 64) - 1

_VCPU = frozenset({"phase", "writes", "draws", "position", "kv"})
_KV = frozenset({"keys", "classes", "newest", "rest-at", "rest-end", "unlink", "modify"})


class _Checked(NamedTuple):
    """A vCPU's part of a state, which fits the guest."""

    phase: int
    writes: int
    work: dict[str, Any] | None  # None: it has not begun
    state: VcpuState


def save(guest: Guest) -> bytes:
    """Return the state of a stopped guest.

    Raises:
        StateError: the guest is not stopped, or its schedule of phases is too long to be saved.
    """
    with guest.standing() as vcpus:
        states = [vcpu.state() for vcpu in vcpus]
        header = {
            "pysampler-guest-state": VERSION,
            "seed": guest.seed,
            "blocks": _blocks(guest),
            "phases": guest.phases.to_json(),
            "clock-ns": guest.clock_ns(),
            "vcpus": [
                {
                    "phase": vcpu.phase,
                    "writes": int(vcpu.counter[0]),
                    "draws": state.draws,
                    "position": state.position,
                    "kv": None if state.kv is None else _kv_members(state.kv),
                }
                for vcpu, state in zip(vcpus, states, strict=True)
            ],
        }
    line = json.dumps(header, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > _MAX_HEADER:
        raise StateError(
            f"the guest's phases take {len(line)} bytes, but its state has room for {_MAX_HEADER};"
            " start it with fewer phases"
        )
    indexes = [
        array.astype("<u8").tobytes()
        for state in states
        if state.kv is not None
        for array in (state.kv.item_at, state.kv.free_at)
    ]
    return b"".join([line, *indexes])


def load(guest: Guest, data: bytes) -> None:
    """Bring a stopped guest into a saved state; it goes on from there when it is continued.

    The guest must have the blocks and the number of vCPUs of the one that was saved. One that waits
    for an incoming migration takes over its phases and seed; any other one must have them, too.

    Args:
        guest: the guest. After an error it is as it was.
        data: what `save` has returned.

    Raises:
        FormatError: not a state, or not one of such a guest; the message names the member.
        StateError: the guest is not stopped.
    """
    with guest.standing() as vcpus:
        pass  # a guest that runs is refused at once
    # Checking a large store takes seconds, in which others may ask the guest how it is.
    header, rest = _split(data)
    phases, seed = _course(guest, header)
    clock_ns = _number(header, "clock-ns", "", 0, _MAX_CLOCK_NS)
    members = header.get("vcpus")
    if not isinstance(members, list) or len(members) != len(vcpus):
        raise FormatError(f"guest state: vcpus: not an array of {len(vcpus)}")
    last_phase = phases.at(clock_ns).number
    checked = []
    for vcpu, member in zip(vcpus, members, strict=True):
        part, rest = _check_vcpu(vcpu, phases, seed, last_phase, member, rest)
        checked.append(part)
    if rest:
        raise FormatError(f"guest state: {len(rest)} bytes more than it says")
    with guest.standing():
        for vcpu, part in zip(vcpus, checked, strict=True):
            vcpu.set_state(part.phase, part.work, part.state)
            vcpu.counter[0] = part.writes
        guest.set_course(phases, seed, clock_ns)


def max_bytes(guest: Guest) -> int:
    """Return how long a state that fits the guest can be; what is longer need not be read."""
    if guest.state is RunState.INMIGRATE:
        ws = max(block.length for block in guest.blocks)
        return _MAX_HEADER + len(guest.writes()) * 8 * most_entries(ws)
    largest = [0] * len(guest.writes())
    for _, workloads in guest.phases.entries:
        for i, workload in enumerate(workloads):
            store = store_of(workload, named(guest.blocks, workload.block), guest.seed)
            if store is not None:
                largest[i] = max(largest[i], 8 * (store.n_keys + len(store.free_at)))
    return _MAX_HEADER + sum(largest)


def _blocks(guest: Guest) -> list[list[str | int]]:
    return [[block.idstr, block.length] for block in guest.blocks]


def _kv_members(kv: KvState) -> dict[str, int]:
    return {
        "keys": len(kv.item_at),
        "classes": len(kv.free_at),
        "newest": kv.newest,
        "rest-at": kv.rest_at,
        "rest-end": kv.rest_end,
        "unlink": kv.unlink,
        "modify": kv.modify,
    }


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Return the header, and all that comes after it."""
    end = data[:_MAX_HEADER].find(b"\n")
    try:
        header = json.loads(data[: max(end, 0)].decode("ascii"))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or "pysampler-guest-state" not in header:
        raise FormatError("guest state: it does not begin with a line of JSON that says so")
    version = header["pysampler-guest-state"]
    if type(version) is not int or version != VERSION:
        raise FormatError(
            f"guest state: version {str(version)[:20]}; this pysampler reads {VERSION}"
        )
    return header, memoryview(data)[end + 1 :]


def _course(guest: Guest, header: Mapping[str, Any]) -> tuple[Phases, int]:
    """Return the phases and the seed with which the guest goes on."""
    waits = guest.state is RunState.INMIGRATE
    own: dict[str, Any] = {"seed": guest.seed, "blocks": _blocks(guest)}
    own["phases"] = guest.phases.to_json()
    for name in ("blocks",) if waits else own:
        if header.get(name) != own[name]:
            raise FormatError(
                f"guest state: {name}: of another guest; start both with the same {name}"
            )
    if not waits:
        return guest.phases, guest.seed
    seed = _number(header, "seed", "", 0, _MAX_U64)
    members, n_vcpus = header.get("vcpus"), len(guest.writes())
    if isinstance(members, list) and len(members) != n_vcpus:
        raise FormatError(
            f"guest state: vcpus: it has {len(members)}, this guest {n_vcpus}; start both with the"
            " same number of vCPUs"
        )
    try:
        phases = Phases.from_json(header.get("phases"), n_vcpus)
        _check_fit(guest, phases, seed)
    except (FormatError, UsageError) as error:
        raise FormatError(f"guest state: phases: {printable(str(error))[:200]}") from error
    return phases, seed


def _check_fit(guest: Guest, phases: Phases, seed: int) -> None:
    """Make sure that all workloads fit their blocks.

    Raises:
        FormatError: their stores are too many.
        UsageError: one does not fit.
    """
    workloads = [
        (workload, named(guest.blocks, workload.block)) for workload in set(phases.workloads())
    ]
    stores = {
        (workload.kv, working_set(workload, block))
        for workload, block in workloads
        if workload.pattern is Pattern.KV
    }
    if len(stores) > _MAX_STORES:
        raise FormatError(
            f"{len(stores)} different stores; a state brings at most {_MAX_STORES}, so start the"
            " other guest with fewer"
        )
    for workload, block in workloads:
        working_set(workload, block)
        store_of(workload, block, seed)


def _check_vcpu(
    vcpu: VcpuThread,
    phases: Phases,
    seed: int,
    last_phase: int,
    member: object,
    rest: memoryview,
) -> tuple[_Checked, memoryview]:
    """Return a vCPU's part, and what comes after its index."""
    where = f"vcpus[{vcpu.index}]"
    members = _object(member, where, _VCPU)
    phase = _number(members, "phase", where, -1, last_phase)
    draws = _number(members, "draws", where, 0, _MAX_U64)
    position = _number(members, "position", where, 0, _MAX_U64)
    writes = _number(members, "writes", where, 0, _MAX_WRITES)
    work, kv, store = None, None, None
    if phase >= 0:
        work = vcpu.work(phase, phases.workloads_of(phase)[vcpu.index], seed)
        store = work["store"]
    if work is not None and store is not None:
        ws = work["n_pages"] * PAGE_SIZE
        kv, rest = _check_kv(store, ws, members["kv"], rest, f"{where}.kv")
    elif members["kv"] is not None:
        raise FormatError(f"guest state: {where}.kv: its workload has no store")
    return _Checked(phase, writes, work, VcpuState(draws, position, kv)), rest


def _check_kv(
    store: KvStore, ws: int, member: object, rest: memoryview, where: str
) -> tuple[KvState, memoryview]:
    """Return the state of a store, which C will trust, and what comes after its index."""
    members = _object(member, where, _KV)
    n, n_classes = store.n_keys, len(store.free_at)
    _number(members, "keys", where, n, n)
    _number(members, "classes", where, n_classes, n_classes)
    size = 8 * (n + n_classes)
    if len(rest) < size:
        raise FormatError(f"guest state: {where}: its index is cut short")
    index = np.frombuffer(rest[:size], dtype="<u8").astype(np.uint64)
    item_at, free_at = index[:n], index[n:]
    # Items move among the chunks of their class, of which one is free. So all chunks are still
    # there, and each item ends inside the working set as it did at first.
    if not _same_chunks(store, item_at, free_at):
        raise FormatError(f"guest state: {where}: its chunks are not those of this guest's store")
    kv = KvState(
        newest=_number(members, "newest", where, 0, n - 1),
        rest_at=_number(members, "rest-at", where, 0, ws),
        rest_end=_number(members, "rest-end", where, 0, ws),
        unlink=_number(members, "unlink", where, 0, ws),
        modify=_number(members, "modify", where, 0, n),
        item_at=item_at,
        free_at=free_at,
    )
    if kv.rest_at != kv.rest_end:
        of_item = (item_at < kv.rest_at) & (item_at + store.item_bytes == kv.rest_end)
        if kv.rest_at > kv.rest_end or kv.rest_at % PAGE_SIZE or not of_item.any():
            raise FormatError(f"guest state: {where}.rest-at: not inside an item")
    if kv.unlink and kv.unlink - 1 not in free_at[np.unique(store.item_class)]:
        raise FormatError(f"guest state: {where}.unlink: not a free chunk")
    return kv, rest[size:]


def _same_chunks(store: KvStore, item_at: NDArray[np.uint64], free_at: NDArray[np.uint64]) -> bool:
    classes = np.concatenate([store.item_class, np.arange(len(free_at))])

    def in_order(*chunks: NDArray[np.uint64]) -> NDArray[np.uint64]:
        together = np.concatenate(chunks)
        ordered: NDArray[np.uint64] = together[np.lexsort((together, classes))]
        return ordered

    return np.array_equal(in_order(store.item_at, store.free_at), in_order(item_at, free_at))


def _object(value: object, where: str, names: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != names:
        raise FormatError(f"guest state: {where}: not an object of {', '.join(sorted(names))}")
    return value


def _number(members: Mapping[str, Any], name: str, where: str, low: int, high: int) -> int:
    value = members.get(name)
    if type(value) is not int or not low <= value <= high:
        path = f"{where}.{name}" if where else name
        wanted = f"from {low} to {high}" if low < high else f"{low}"
        raise FormatError(f"guest state: {path}: not a whole number {wanted}")
    return value
