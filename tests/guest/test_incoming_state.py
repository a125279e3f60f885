"""A guest that waits for an incoming migration takes over what the other one was started with."""

import json
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pysampler.errors import FormatError, StateError
from pysampler.guest import BlockSpec, Guest, Phases, allocate, snapshot
from pysampler.guest.phases import assign
from pysampler.guest.run_state import RunState

MS = 1_000_000
PAGES = 2049
BLOCKS = ("pc.ram", "b1", "b2", "b3")


@pytest.fixture
def start():
    """Start guests that are ended after the test; each vCPU has a block of its own."""
    guests = []

    def make(phases, seed=0, *, incoming=False, pages=PAGES, blocks=BLOCKS):
        ram = allocate([BlockSpec(name, pages * 4096) for name in blocks], zero=1.0)
        guests.append(Guest(ram, phases, seed, incoming=incoming))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


def idle(n_vcpus=4):
    return Phases.steady(assign(["idle"], n_vcpus))


def course(second_ms):
    """Return phases in which vCPU i writes block i, so that none hides what another has written."""
    phases = (
        (20, ["0=kv:mix=A,wps=200k,ws=4M", "uniform:wps=100k"]),
        (second_ms, ["sweep:wps=5k", "3=kv:mix=F,value=64-900,wps=5k,ws=4M"]),
        (10, ["zipf:wps=50k,theta=0.9"]),
    )
    return Phases(
        tuple(
            (ms * MS, assign([f"{i}={w.text},block={BLOCKS[i]}" for i, w in enumerate(row)], 4))
            for ms, row in ((ms, assign(texts, 4)) for ms, texts in phases)
        ),
        repeat=True,
    )


def run_until(guest, clock_ns):
    guest.cont()
    while guest.clock_ns() < clock_ns:
        time.sleep(0.001)
    guest.stop()


def marks(guest, vcpu):
    """Number of a write -> where its mark is."""
    words = np.frombuffer(guest.blocks[vcpu].memory, dtype=np.uint64)
    at = words.nonzero()[0]
    assert (words[at] >> np.uint64(48) == vcpu).all()
    return {int(words[i]) & (1 << 48) - 1: int(i) for i in at}


def test_it_goes_on_as_the_other_one_does_that_is_left_alone(start, let_it_write):
    phases = course(60_000)
    source = start(phases, 7)
    run_until(source, 30 * MS)
    destination = start(idle(), 1, incoming=True)

    snapshot.load(destination, snapshot.save(source))
    for block, its in zip(source.blocks, destination.blocks, strict=True):
        its.memory[:] = block.memory
    assert destination.state is RunState.INMIGRATE
    assert destination.writes() == source.writes()
    assert destination.clock_ns() == source.clock_ns()
    assert destination.seed == 7
    assert destination.phases == phases
    assert [vcpu.workload for vcpu in destination.vcpus()] == [
        vcpu.workload for vcpu in source.vcpus()
    ]

    # The phase that is under way lasts, or how many writes fall into it would be up to the pace.
    destination.transition(RunState.PAUSED)
    before = source.writes()
    for guest in (source, destination):
        let_it_write(guest, 200)
        assert guest.phases.at(guest.clock_ns()).number == 1
    for vcpu in range(4):
        common = min(source.writes()[vcpu], destination.writes()[vcpu])
        assert common > before[vcpu]
        ours, theirs = marks(source, vcpu), marks(destination, vcpu)
        both = ours.keys() & theirs.keys()
        assert both & set(range(before[vcpu] + 1, common + 1))
        assert all(ours[number] == theirs[number] for number in both)


def test_phases_and_stores_of_later_phases_are_its_own_too(start):
    phases = course(15)
    source = start(phases, 7)
    run_until(source, 5 * MS)
    state = snapshot.save(source)
    destination = start(idle(), 1, incoming=True)
    alike = start(phases, 7)
    snapshot.load(destination, state)
    snapshot.load(alike, state)
    destination.transition(RunState.PAUSED)
    assert snapshot.save(destination) == snapshot.save(alike) == state
    run_until(destination, 120 * MS)
    assert destination.phases.at(destination.clock_ns()).number > 3
    snapshot.load(start(idle(), 2, incoming=True), snapshot.save(destination))


def test_such_a_state_is_within_the_bound(start):
    store = "kv:mix=A,value=1,wps=1k"
    source = start(Phases.steady(assign([store], 4)), 7)
    source.cont()
    while not all(source.writes()):
        time.sleep(0.001)
    source.stop()
    state = snapshot.save(source)
    destination = start(idle(), incoming=True)
    assert 200_000 < len(state) < snapshot.max_bytes(destination)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"phases": idle(3)}, "vcpus: it has 4, this guest 3; start both with the same number"),
        ({"pages": PAGES + 1}, "blocks: of another guest; start both with the same blocks"),
        ({"blocks": BLOCKS[:3]}, "blocks: of another guest; start both with the same blocks"),
    ],
)
def test_a_guest_that_cannot_take_it_over_names_what_differs(start, other, message):
    state = snapshot.save(start(course(15), 7))
    destination = start(**{"phases": idle(), "seed": 1, "incoming": True, **other})
    with pytest.raises(FormatError, match=f"guest state: {message}"):
        snapshot.load(destination, state)
    assert destination.seed == 1


def test_a_guest_that_does_not_wait_takes_over_nothing(start):
    state = snapshot.save(start(course(15), 7))
    with pytest.raises(FormatError, match="phases: of another guest"):
        snapshot.load(start(idle(), 7), state)


def test_a_schedule_that_is_too_long_is_not_saved(start):
    def phases(name):
        texts = [f"uniform:wps={n + 1},block={name}" for n in range(40_000)]
        return Phases(tuple((n + 1, assign(texts[n : n + 4], 4)) for n in range(0, 40_000, 4)))

    snapshot.save(start(phases("pc.ram")))
    name = "x" * 100
    guest = start(phases(name), blocks=(name,))
    with pytest.raises(StateError, match=r"phases take .* bytes, .* start it with fewer phases"):
        snapshot.save(guest)


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("seed", -1, "seed: not a whole number"),
        ("seed", 1 << 64, "seed: not a whole number"),
        ("seed", True, "seed: not a whole number"),
        ("phases", None, "not an object of entries, repeat, vcpus, workloads"),
        ("phases", {}, "not an object of entries, repeat, vcpus, workloads"),
        ("phases.vcpus", 3, "phases: vcpus: not 4, the number of this guest's"),
        ("phases.vcpus", True, "phases: vcpus: not 4"),
        ("workloads", "idle", "workloads: not an array of texts"),
        ("workloads", [1], "workloads: not an array of texts"),
        ("workloads", ["nonsense"], "no such workload"),
        ("workloads", ["uniform:wps=0"], "wps: 0 is not from 1"),
        ("workloads", ["uniform:ws=1G"], "ws is larger than pc.ram"),
        ("workloads", ["uniform:block=a\nb"], r"block=a\\nb: no such block"),
        ("workloads", ["uniform:block=" + "x" * 100_000], "no such block|block=xxx"),
        ("workloads", ["kv:keys=16000000"], "16000000 keys of up to 1000 bytes do not fit"),
        ("workloads", ["burst:of=" * 50_000], "no such workload|burst"),
        ("entries", [], "entries: not an array of 1 to 10000"),
        ("entries", [[None, 0]] * 10_001, "entries: not an array of 1 to 10000"),
        ("entries", [[None]], r"entries\[0\]: not an array of a length and workloads"),
        ("entries", [None], r"entries\[0\]: not an array of a length and workloads"),
        ("entries", [[0, 0]], r"entries\[0\]\[0\]: not null, nor a whole number from 1"),
        ("entries", [[1.5, 0]], r"entries\[0\]\[0\]: not null, nor a whole number from 1"),
        ("entries", [[1 << 63, 0]], r"entries\[0\]\[0\]: not null, nor a whole number from 1"),
        ("entries", [[None, 1]], r"entries\[0\]\[1\]: not a number below 1 for each vCPU"),
        ("entries", [[None, -1]], r"entries\[0\]\[1\]: not a number below 1 for each vCPU"),
        ("entries", [[None, True]], r"entries\[0\]\[1\]: not a number below 1 for each vCPU"),
        ("entries", [[None, [0, 0]]], r"entries\[0\]\[1\]: it is for 2 vCPUs; there are 4"),
        ("entries", [[None, 0], [5, 0]], r"phases\[0\].for: missing; only a last one may last"),
        ("repeat", 1, "repeat: not true or false"),
        ("repeat", True, r"phases\[0\].for: missing; only a last one may last"),
    ],
)
def test_what_a_hostile_peer_says_of_phases_is_refused_by_name(start, member, value, message):
    header = json.loads(snapshot.save(start(idle(), 7)))
    place = header if member in header else header["phases"]
    place[member.removeprefix("phases.")] = value
    destination = start(idle(), 1, incoming=True)
    before = destination.phases
    with pytest.raises(FormatError, match=f"^guest state: .*({message})") as raised:
        snapshot.load(destination, json.dumps(header).encode("ascii") + b"\n")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300
    assert destination.phases == before
    assert destination.seed == 1


def test_a_peer_cannot_have_many_stores_laid_out(start):
    header = json.loads(snapshot.save(start(idle(), 7)))
    header["phases"]["workloads"] = [f"kv:keys={n + 2}" for n in range(17)]
    header["phases"]["entries"] = [[1, n] for n in range(17)]
    destination = start(idle(), 1, incoming=True)
    with pytest.raises(FormatError, match="17 different stores; a state brings at most 16"):
        snapshot.load(destination, json.dumps(header).encode("ascii") + b"\n")
    header["phases"]["entries"] = [[1, n] for n in range(16)]
    snapshot.load(destination, json.dumps(header).encode("ascii") + b"\n")
    assert destination.phases.entries[15][1][0].text == "kv:keys=17"


TEXTS = ["idle", "sweep:wps=1k", "kv:keys=9", "kv:ws=1M", "uniform:block=b1", "uniform:ws=9M", "x"]
ODD = st.sampled_from([None, True, -1, 0, 1, 2, 1.5, 1 << 70, "", [], {}, [0, 0, 0, 0], [[1, 0]]])
NUMBERS = st.integers(0, 4)
ENTRIES = st.lists(
    st.tuples(
        st.integers(1, 1 << 62), st.one_of(NUMBERS, st.lists(NUMBERS, min_size=4, max_size=4))
    ),
    min_size=1,
    max_size=3,
).map(lambda entries: [list(entry) for entry in entries])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_schedule_is_refused_or_taken_over_whole(waiting, data):
    guest, header = waiting
    phases = {
        "vcpus": 4,
        "workloads": TEXTS[:5],
        "entries": data.draw(ENTRIES),
        "repeat": data.draw(st.booleans()),
    }
    seed = data.draw(st.integers(0, 9))
    change = data.draw(st.sampled_from(["none", "seed", "text", "length", "row", *phases]))
    odd = data.draw(ODD)
    if change == "seed":
        seed = odd
    elif change == "text":
        phases["workloads"] = data.draw(st.permutations(TEXTS))
    elif change in {"length", "row"}:
        data.draw(st.sampled_from(phases["entries"]))[change == "row"] = odd
    elif change in phases:
        phases[change] = odd
    message = json.dumps({**header, "phases": phases, "seed": seed}).encode("ascii") + b"\n"
    before = snapshot.save(guest)
    refused = ""
    try:
        snapshot.load(guest, message)
    except FormatError as error:
        refused = str(error)
    assert "\n" not in refused
    assert len(refused) < 300
    if refused:
        event("refused")
        assert snapshot.save(guest) == before
    else:
        event("taken over")
        assert guest.seed == seed
        used = [[w.text for w in row] for _, row in guest.phases.entries]
        rows = [row if isinstance(row, list) else [row] * 4 for _, row in phases["entries"]]
        assert used == [[phases["workloads"][i] for i in row] for row in rows]
        assert [length for length, _ in guest.phases.entries] == [e[0] for e in phases["entries"]]


@pytest.fixture(scope="module")
def waiting():
    """A guest that waits for a migration, and the header of a state that it takes over."""
    ram = allocate([BlockSpec(name, PAGES * 4096) for name in BLOCKS], zero=1.0)
    guest = Guest(ram, idle(), 1, incoming=True)
    yield guest, json.loads(snapshot.save(guest))
    guest.close()
