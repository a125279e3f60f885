# SPDX-License-Identifier: MIT
"""A guest's state as bytes: how far each vCPU is in its sequence of writes, and the guest's clock.

A guest that loads the state of another one, and has its RAM, goes on with the very sequence of
writes that the other one would have made. RAM itself is not part of it, nor are the pace and the
throttle: they decide when a write happens, not which.

The bytes are one line of JSON in ASCII, then for each vCPU with a store, in order, its index:
`item_at` and `free_at`, numbers of 64 bits, the lowest byte first. They may come from anyone.
All is checked before any of it is used, against the layout that the guest itself has.
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pysampler.core import KvState, VcpuState
from pysampler.errors import FormatError
from pysampler.guest.ram import PAGE_SIZE, named
from pysampler.guest.vcpu import store_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pysampler.core import KvStore
    from pysampler.guest.guest import Guest
    from pysampler.guest.phases import Phases
    from pysampler.guest.vcpu import VcpuThread

VERSION = 1

_MAX_HEADER = 1 << 18  # 255 vCPUs and 64 blocks take less
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
        StateError: the guest is not stopped.
    """
    with guest.standing() as vcpus:
        states = [vcpu.state() for vcpu in vcpus]
        header = {
            "pysampler-guest-state": VERSION,
            "seed": guest.seed,
            "blocks": _blocks(guest),
            "phases": _digest(guest.phases),
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
    indexes = [
        array.astype("<u8").tobytes()
        for state in states
        if state.kv is not None
        for array in (state.kv.item_at, state.kv.free_at)
    ]
    return b"".join([json.dumps(header).encode("ascii"), b"\n", *indexes])


def load(guest: Guest, data: bytes) -> None:
    """Bring a stopped guest into a saved state; it goes on from there when it is continued.

    The guest must have the blocks, phases and seed of the one that was saved.

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
    _check_same_guest(guest, header)
    clock_ns = _number(header, "clock-ns", "", 0, _MAX_CLOCK_NS)
    members = header.get("vcpus")
    if not isinstance(members, list) or len(members) != len(vcpus):
        raise FormatError(f"guest state: vcpus: not an array of {len(vcpus)}")
    checked = []
    for vcpu, member in zip(vcpus, members, strict=True):
        part, rest = _check_vcpu(guest, vcpu, member, rest, clock_ns)
        checked.append(part)
    if rest:
        raise FormatError(f"guest state: {len(rest)} bytes more than it says")
    with guest.standing():
        for vcpu, part in zip(vcpus, checked, strict=True):
            vcpu.set_state(part.phase, part.work, part.state)
            vcpu.counter[0] = part.writes
        guest.set_clock(clock_ns)


def max_bytes(guest: Guest) -> int:
    """Return how long a state that fits the guest can be; what is longer need not be read."""
    largest = [0] * len(guest.writes())
    for _, workloads in guest.phases.entries:
        for i, workload in enumerate(workloads):
            store = store_of(workload, named(guest.blocks, workload.block), guest.seed)
            if store is not None:
                largest[i] = max(largest[i], 8 * (store.n_keys + len(store.free_at)))
    return _MAX_HEADER + sum(largest)


def _blocks(guest: Guest) -> list[list[str | int]]:
    return [[block.idstr, block.length] for block in guest.blocks]


def _digest(phases: Phases) -> str:
    """Return what tells schedules apart: they may be long, and are not needed to load a state."""
    digest = blake2b(digest_size=16)
    digest.update(json.dumps([phases.repeat, len(phases.entries[0][1])]).encode("ascii"))
    for length, workloads in phases.entries:
        digest.update(json.dumps([length, [w.text for w in workloads]]).encode("ascii"))
    return digest.hexdigest()


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


def _check_same_guest(guest: Guest, header: Mapping[str, Any]) -> None:
    own = {"seed": guest.seed, "blocks": _blocks(guest), "phases": _digest(guest.phases)}
    for name, value in own.items():
        if header.get(name) != value:
            raise FormatError(
                f"guest state: {name}: of another guest; start both with the same {name}"
            )


def _check_vcpu(
    guest: Guest, vcpu: VcpuThread, member: object, rest: memoryview, clock_ns: int
) -> tuple[_Checked, memoryview]:
    """Return a vCPU's part, and what comes after its index."""
    where = f"vcpus[{vcpu.index}]"
    members = _object(member, where, _VCPU)
    phase = _number(members, "phase", where, -1, guest.phases.at(clock_ns).number)
    draws = _number(members, "draws", where, 0, _MAX_U64)
    position = _number(members, "position", where, 0, _MAX_U64)
    writes = _number(members, "writes", where, 0, _MAX_WRITES)
    work, kv, store = None, None, None
    if phase >= 0:
        work = vcpu.work(phase, guest.phases.workloads_of(phase)[vcpu.index])
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
