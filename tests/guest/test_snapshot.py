"""A guest that loads another one's state goes on with its very sequence of writes."""

import json
import random
import time
from itertools import islice

import guest_oracle as oracle
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from test_sequence import KV_PAGES, kv_store

from pysampler.errors import FormatError, StateError
from pysampler.guest import BlockSpec, Guest, Phases, allocate, snapshot
from pysampler.guest.kv import KvOptions, lay_out
from pysampler.guest.phases import assign

MS = 1_000_000
MIXES = {
    f"kv:mix={mix},value=64-9000,{{}}": lambda r, mix=mix: oracle.kv(
        r, kv_store(mix, value=(64, 9000)), 0.99, mix
    )
    for mix in "ABCDF"
}
CASES = {
    "uniform:{}": lambda r: oracle.uniform(r, 257),
    "uniform:ws=516K,{}": lambda r: oracle.uniform(r, 129),
    "hotcold:hot=10%,hits=90%,{}": lambda r: oracle.hotcold(r, 257, 26, 0.9),
    "zipf:theta=0.99,{}": lambda r: oracle.zipf(r, 257, 0.99),
    "sweep:{}": lambda r: oracle.sweep(r, 257),
    "burst:on=1ms,off=1ms,{},of=uniform": lambda r: oracle.uniform(r, 257),
    "silent:{},of=zipf:theta=0.99": lambda r: oracle.zipf(r, 257, 0.99),
    "free:{},of=sweep": lambda r: oracle.sweep(r, 257),
    **MIXES,
}


def marks(guest, block, vcpu):
    """Word offset -> number of the write whose mark it bears."""
    words = np.frombuffer(guest.blocks[block].memory, dtype=np.uint64)
    return {
        int(at) * 8: int(words[at]) & (1 << 48) - 1
        for at in words.nonzero()[0]
        if int(words[at]) >> 48 == vcpu
    }


def moved(guest, other):
    """Bring a guest's state and RAM to another one, and end the first."""
    snapshot.load(other, snapshot.save(guest))
    for block, its in zip(guest.blocks, other.blocks, strict=True):
        its.memory[:] = block.memory
    assert other.writes() == guest.writes()
    assert other.clock_ns() == guest.clock_ns()
    guest.close()
    return other


@pytest.mark.parametrize("workload", CASES)
def test_it_goes_on_as_if_it_had_been_left_alone(make_guest, let_it_write, workload):
    cases = sorted(CASES)
    n_vcpus = 1 + cases.index(workload) % 3
    pages = KV_PAGES if workload.startswith("kv") else 257
    names = ["pc.ram", "b1", "b2"][:n_vcpus]  # each vCPU has its own, or they hide each other
    rng = random.Random(workload)

    def make():
        words = [f"{i}={workload.format(f'wps=200k,block={b}')}" for i, b in enumerate(names)]
        blocks = [BlockSpec(name, pages * 4096) for name in names[1:]]
        return make_guest(*words, vcpus=n_vcpus, pages=pages, blocks=blocks)

    guest = make()
    for _ in range(8):
        let_it_write(guest, rng.randrange(200))
        before = guest.writes()
        guest = moved(guest, make())
    let_it_write(guest, 500)

    for vcpu, (first, writes) in enumerate(zip(before, guest.writes(), strict=True)):
        sequence = list(islice(CASES[workload](oracle.Random(7, vcpu)), writes))
        since = {abs(at) // 4096 for at in sequence[first:]}
        assert set(guest.blocks[vcpu].stamps.nonzero()[0]) == since
        if workload.startswith(("silent", "free")):
            assert not np.frombuffer(guest.blocks[vcpu].memory, np.uint64).any()
        else:
            expected = {at: i for i, at in enumerate(sequence, 1) if at >= 0}
            assert marks(guest, vcpu, vcpu) == expected


def test_phases_go_on_where_they_were():
    patterns = {
        "uniform": lambda r: oracle.uniform(r, 257),
        "hotcold": lambda r: oracle.hotcold(r, 257, 26, 0.9),
        "zipf": lambda r: oracle.zipf(r, 257, 0.99),
        "sweep": lambda r: oracle.sweep(r, 257),
    }
    blocks = {(p, v): f"{name}{v}" for p, name in enumerate(patterns) for v in (0, 1)}
    entries = [
        (
            None if p == len(patterns) - 1 else 15 * MS,
            assign([f"{name}:wps=100k,block={blocks[p, v]}" for v in (0, 1)], 2),
        )
        for p, name in enumerate(patterns)
    ]
    specs = [BlockSpec(name, 257 * 4096) for name in blocks.values()]

    def make():
        return Guest(allocate(specs, zero=1.0), Phases(tuple(entries)), 7)

    rng = random.Random(1)
    guest = make()
    while guest.clock_ns() < 60 * MS:
        guest.cont()
        time.sleep(rng.random() * 0.008)
        guest.stop()
        guest = moved(guest, make())

    for vcpu in (0, 1):
        done = 0
        for p, sequence in enumerate(patterns.values()):
            found = marks(guest, list(blocks).index((p, vcpu)), vcpu)
            last = max(found.values(), default=done)  # nothing in this block hides the last one
            written = islice(sequence(oracle.Random(7, vcpu, p)), last - done)
            assert found == {at: i for i, at in enumerate(written, done + 1)}
            done = last
        assert done == guest.writes()[vcpu]
    guest.close()


def test_a_guest_that_has_not_run_can_be_moved(make_guest, let_it_write):
    guest = moved(
        make_guest("kv:wps=200k", pages=KV_PAGES), make_guest("kv:wps=200k", pages=KV_PAGES)
    )
    let_it_write(guest, 100)
    sequence = oracle.kv(oracle.Random(7), kv_store("A"), 0.99, "A")
    expected = {at: i for i, at in enumerate(islice(sequence, guest.writes()[0]), 1) if at >= 0}
    assert marks(guest, 0, 0) == expected


def test_a_state_is_saved_and_loaded_while_the_guest_is_stopped_only(make_guest):
    guest, other = make_guest("uniform"), make_guest("uniform")
    data = snapshot.save(guest)
    other.cont()
    with pytest.raises(StateError, match="stop it first"):
        snapshot.load(other, data)
    with pytest.raises(StateError, match="stop it first"):
        snapshot.save(other)


def test_the_clock_may_be_ahead_of_this_machines(make_guest, let_it_write):
    guest = make_guest("burst:on=20ms,off=1ms,wps=100k")
    header = json.loads(snapshot.save(guest))
    header["clock-ns"] = 1 << 62
    snapshot.load(guest, json.dumps(header).encode() + b"\n")
    let_it_write(guest, 100)
    assert guest.clock_ns() > 1 << 62


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"seed": 8}, "seed"),
        ({"pages": 258}, "blocks"),
        ({"blocks": [BlockSpec("vga", 4096)]}, "blocks"),
        ({"vcpus": 2}, "phases"),
        ({"workload": "sweep"}, "phases"),
    ],
)
def test_the_state_of_another_guest_is_refused(make_guest, other, differs):
    data = snapshot.save(make_guest("uniform"))
    guest = make_guest(other.pop("workload", "uniform"), **other)
    with pytest.raises(FormatError, match=f"guest state: {differs}: of another guest"):
        snapshot.load(guest, data)


WS = 24 * 1024 * 1024
STORE = "kv:mix=F,value=8000-20000,keys=300,wps=200k"


STORE_CLASSES = lay_out(KvOptions(mix="F", value=(8000, 20000), keys=300), WS, 7).item_class


@pytest.fixture(scope="module")
def store_guest():
    """A guest with a store in the first part of its block, and a block beside it."""
    ram = allocate([BlockSpec("pc.ram", WS + 64 * 4096), BlockSpec("vga", 31 * 4096)], zero=1.0)
    guest = Guest(ram, Phases.steady(assign([f"{STORE},ws=24M"], 1)), 7)
    yield guest
    guest.close()


@pytest.fixture(scope="module")
def store_state(store_guest):
    """A header and an index, in the middle of an update."""
    while True:
        store_guest.cont()
        while not store_guest.writes()[0]:
            pass
        store_guest.stop()
        line, _, index = snapshot.save(store_guest).partition(b"\n")
        header = json.loads(line)
        kv = header["vcpus"][0]["kv"]
        if kv["unlink"] and kv["rest-at"] < kv["rest-end"]:
            return header, index


def joined(header, index):
    return json.dumps(header).encode("ascii") + b"\n" + bytes(index)


def let_it_go_on(guest, writes=200):
    """Let a guest write; nothing may be written outside its working set."""
    goal = guest.writes()[0] + writes
    guest.cont()
    while guest.writes()[0] < goal:
        time.sleep(0.0005)
    guest.stop()
    guard = np.frombuffer(guest.blocks[0].memory, np.uint64)[WS // 8 :]
    assert not guard.any()
    assert not np.frombuffer(guest.blocks[1].memory, np.uint64).any()


def test_a_state_that_nobody_changed_is_loaded(store_guest, store_state):
    assert len(joined(*store_state)) <= snapshot.max_bytes(store_guest)
    snapshot.load(store_guest, joined(*store_state))
    let_it_go_on(store_guest)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("clock-ns", -1, "clock-ns: not a whole number"),
        ("clock-ns", 1 << 63, "clock-ns: not a whole number"),
        ("clock-ns", 1.5, "clock-ns: not a whole number"),
        ("pysampler-guest-state", 1, "version 1; this pysampler reads 2"),
        ("vcpus", [], "vcpus: not an array of 1"),
        ("vcpus", None, "vcpus: not an array of 1"),
        ("vcpus.0", 5, r"vcpus\[0\]: not an object of draws, kv"),
        ("vcpus.0.more", 5, r"vcpus\[0\]: not an object of draws, kv"),
        ("vcpus.0.draws", 1 << 64, r"vcpus\[0\].draws: not a whole number"),
        ("vcpus.0.draws", True, r"vcpus\[0\].draws: not a whole number"),
        ("vcpus.0.position", -1, r"vcpus\[0\].position: not a whole number"),
        ("vcpus.0.writes", 1 << 48, r"vcpus\[0\].writes: not a whole number"),
        ("vcpus.0.phase", 1, r"vcpus\[0\].phase: not a whole number from -1 to 0"),
        ("vcpus.0.phase", -1, r"vcpus\[0\].kv: its workload has no store"),
        ("vcpus.0.kv", None, r"vcpus\[0\].kv: not an object"),
        ("vcpus.0.kv.keys", 301, r"kv.keys: not a whole number 300"),
        ("vcpus.0.kv.classes", 1, r"kv.classes: not a whole number"),
        ("vcpus.0.kv.newest", 300, r"kv.newest: not a whole number from 0 to 299"),
        ("vcpus.0.kv.modify", 301, r"kv.modify: not a whole number from 0 to 300"),
        ("vcpus.0.kv.rest-end", WS + 8, r"kv.rest-end: not a whole number"),
        ("vcpus.0.kv.rest-end", WS, r"kv.rest-at: not inside an item"),
        ("vcpus.0.kv.rest-at", WS, r"kv.rest-at: not inside an item"),
        ("vcpus.0.kv.rest-at", 0, r"kv.rest-at: not inside an item"),
        ("vcpus.0.kv.rest-at", 8, r"kv.rest-at: not inside an item"),
        ("vcpus.0.kv.unlink", WS, r"kv.unlink: not a free chunk"),
        ("vcpus.0.kv.unlink", 2, r"kv.unlink: not a free chunk"),
    ],
)
def test_a_hostile_member_is_refused_by_name(store_guest, store_state, path, value, message):
    header = json.loads(json.dumps(store_state[0]))
    place = header
    *parents, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    for word in parents:
        place = place[word]
    place[last] = value
    before = snapshot.save(store_guest)
    with pytest.raises(FormatError, match=f"^guest state: .*{message}"):
        snapshot.load(store_guest, joined(header, store_state[1]))
    assert snapshot.save(store_guest) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.__setitem__(5, WS - 8),
        lambda index: index.__setitem__(5, 1 << 63),
        lambda index: index.__setitem__(5, index[5] + 1),
        lambda index: index.__setitem__(5, index[6]),
        lambda index: index.__setitem__(300 + index[300:].argmax(), WS),
        # A small chunk for a large item, which would end in the next slab.
        lambda index: index.__setitem__(slice(None), np.roll(index, 1)),
    ],
)
def test_hostile_chunks_are_refused(store_guest, store_state, change):
    header, index = store_state
    numbers = np.frombuffer(index, np.uint64).copy()
    change(numbers)
    with pytest.raises(FormatError, match="its chunks are not those of this guest's store"):
        snapshot.load(store_guest, joined(header, numbers.tobytes()))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "begin with a line of JSON"),
        (b"\n", "begin with a line of JSON"),
        (b"{}\n", "begin with a line of JSON"),
        (b"[" * 200_000 + b"\n", "begin with a line of JSON"),
        (b"\xff\n", "begin with a line of JSON"),
        (b'{"pysampler-guest-state": 2}', "begin with a line of JSON"),
        (b'{"pysampler-guest-state": 2' + b" " * (1 << 22) + b"}\n", "begin with a line of JSON"),
        (b'{"pysampler-guest-state": true}\n', "version True"),
        (b'{"pysampler-guest-state": ' + b"9" * 5000 + b"}\n", "guest state: "),
        (b'{"pysampler-guest-state": 2}\n', "seed: of another guest"),
    ],
)
def test_what_is_no_state_is_refused(store_guest, data, message):
    with pytest.raises(FormatError, match=message):
        snapshot.load(store_guest, data)


def test_an_index_of_another_length_is_refused(store_guest, store_state):
    data = joined(*store_state)
    with pytest.raises(FormatError, match="cut short"):
        snapshot.load(store_guest, data[:-1])
    with pytest.raises(FormatError, match="1 bytes more than it says"):
        snapshot.load(store_guest, data + b"x")


NUMBERS = st.one_of(
    st.integers(0, 400),
    st.integers(0, 299),
    st.integers(0, WS // 8).map(lambda n: n * 8),
    st.integers(-(1 << 65), 1 << 65),
    st.sampled_from([None, True, "", [], {}, 0.5]),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_state_is_refused_or_can_be_run_from(store_guest, store_state, data):
    header = json.loads(json.dumps(store_state[0]))
    places = (header, header["vcpus"][0], header["vcpus"][0]["kv"])
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.sampled_from(places))
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(NUMBERS)
    index = np.frombuffer(store_state[1], np.uint64).copy()
    classes = np.concatenate([STORE_CLASSES, np.arange(len(index) - 300)])
    for _ in range(data.draw(st.integers(0, 2))):
        a = data.draw(st.integers(0, len(index) - 1))
        alike = (classes == classes[a]).nonzero()[0]  # swapped among these it is a legal state
        b = data.draw(st.one_of(st.sampled_from(list(alike)), st.integers(0, len(index) - 1)))
        index[[a, b]] = index[[b, a]]
    message = bytearray(joined(header, index.tobytes()))
    if data.draw(st.integers(0, 5)) == 5:
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    refused = ""
    try:
        snapshot.load(store_guest, bytes(message))
    except FormatError as error:
        refused = str(error)
    assert "\n" not in refused
    assert len(refused) < 300
    event("refused" if refused else "loaded")
    if not refused:
        let_it_go_on(store_guest)
