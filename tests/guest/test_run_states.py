"""The states of a guest, and the ways between them that QEMU 10 has."""

import os
import select
import threading
import time

import pytest

from pysampler import core
from pysampler.core import Range, UffdKind
from pysampler.errors import MissingFeatureError, StateError
from pysampler.guest import BlockSpec, Guest, Phases, allocate
from pysampler.guest import guest as guest_module
from pysampler.guest.phases import assign
from pysampler.guest.run_state import RunState, check_transition
from pysampler.tracking.userfaultfd import open_userfaultfd

LEGAL = {
    "inmigrate": {"prelaunch", "running", "paused", "shutdown"},
    "prelaunch": {"running", "finish-migrate", "shutdown"},
    "running": {"paused", "finish-migrate", "shutdown"},
    "paused": {"running", "finish-migrate", "shutdown"},
    "finish-migrate": {"prelaunch", "running", "paused", "postmigrate", "shutdown"},
    "postmigrate": {"running", "shutdown"},
    "shutdown": set(),
}
# How a guest comes into each state, from its first one.
WAYS = {
    "prelaunch": [],
    "running": ["running"],
    "paused": ["running", "paused"],
    "finish-migrate": ["running", "finish-migrate"],
    "postmigrate": ["running", "finish-migrate", "postmigrate"],
    "shutdown": ["shutdown"],
}


@pytest.fixture
def incoming():
    ram = allocate([BlockSpec("pc.ram", 31 * 4096)], zero=1.0)
    guest = Guest(ram, Phases.steady(assign(["uniform:wps=max"], 1)), incoming=True)
    yield guest
    guest.close()


def in_state(make_guest, state, *workloads):
    guest = make_guest(*workloads or ["uniform:wps=max"])
    for step in WAYS[state]:
        guest.transition(RunState(step))
    assert guest.state.value == state
    return guest


@pytest.mark.parametrize("before", LEGAL)
@pytest.mark.parametrize("to", LEGAL)
def test_only_legal_transitions_are_made(before, to):
    if to in LEGAL[before]:
        check_transition(RunState(before), RunState(to))
        return
    with pytest.raises(StateError, match=f"in state {before}; it cannot become {to}$"):
        check_transition(RunState(before), RunState(to))


def test_an_illegal_transition_changes_nothing(make_guest):
    guest = in_state(make_guest, "postmigrate")
    with pytest.raises(StateError, match="it cannot become finish-migrate"):
        guest.transition(RunState.FINISH_MIGRATE)
    assert guest.state is RunState.POSTMIGRATE


@pytest.mark.parametrize("state", WAYS)
def test_vcpus_write_while_the_guest_runs_and_at_no_other_time(make_guest, state):
    guest = in_state(make_guest, state)
    before = guest.writes()
    if state == "running":
        while guest.writes() == before:
            pass
    else:
        time.sleep(0.02)
        assert guest.writes() == before


@pytest.mark.parametrize("state", sorted(set(WAYS) - {"running"}))
def test_a_guest_that_does_not_run_keeps_its_state_when_it_is_stopped(make_guest, state):
    guest = in_state(make_guest, state)
    assert not guest.stop()
    assert guest.state.value == state


@pytest.mark.parametrize("state", ["prelaunch", "paused", "postmigrate"])
def test_cont_lets_a_guest_run_once(make_guest, state):
    guest = in_state(make_guest, state)
    assert guest.cont()
    assert not guest.cont()
    assert guest.state is RunState.RUNNING
    assert guest.stop()
    assert guest.state is RunState.PAUSED


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("finish-migrate", "Migration is not finalized yet"),
        ("shutdown", "Resetting the Virtual Machine is required"),
    ],
)
def test_cont_is_refused_in_qemus_words(make_guest, state, message):
    guest = in_state(make_guest, state)
    with pytest.raises(StateError, match=message):
        guest.cont()
    assert guest.state.value == state


def test_stop_and_cont_of_an_incoming_guest_hold_for_when_it_has_come(incoming):
    assert not incoming.autostart
    assert not incoming.cont()
    assert incoming.autostart
    assert not incoming.stop()
    assert not incoming.autostart
    assert incoming.state is RunState.INMIGRATE
    assert incoming.writes() == (0,)
    incoming.transition(RunState.RUNNING)
    while incoming.writes() == (0,):
        pass


def test_a_closed_guest_is_shut_down(make_guest):
    guest = make_guest("idle")
    guest.close()
    assert guest.state is RunState.SHUTDOWN


@pytest.fixture
def held(make_guest, monkeypatch):
    """A guest of two vCPUs, the second of which is held in a write; and what lets it go."""
    monkeypatch.setattr(guest_module, "STOP_LIMIT_S", 0.2)
    try:
        uffd = open_userfaultfd(UffdKind.MESSAGES)
    except MissingFeatureError as error:
        pytest.skip(str(error))
    guest = make_guest(
        "sweep:wps=max", "sweep:block=vga,wps=max", vcpus=2, blocks=[BlockSpec("vga", 31 * 4096)]
    )
    block = guest.blocks[1]
    memory = Range(block.address, block.length, first_bit=0)
    core.uffd_register(uffd, memory)
    core.uffd_protect(uffd, memory)
    guest.cont()
    while not guest.writes()[0]:
        pass
    assert select.select([uffd], [], [], 60)[0]  # the message of the write that waits

    def let_go():
        monkeypatch.setattr(guest_module, "STOP_LIMIT_S", 60)  # the machine may be busy
        core.uffd_unregister(uffd, memory)

    yield guest, let_go
    os.close(uffd)


def test_stop_says_which_vcpu_is_held_and_how_to_free_it(held):
    guest, _ = held
    with pytest.raises(StateError, match=r"vCPU 1 has not stopped within 0\.2 s.*end the process"):
        guest.stop()
    assert guest.state is RunState.PAUSED
    assert guest.writes()[1] == 0


def test_a_held_vcpu_stops_when_it_is_let_go(held):
    guest, let_go = held
    with pytest.raises(StateError, match="vCPU 1"):
        guest.stop()
    let_go()
    assert guest.stop()  # the one that says so, for nobody has heard it yet
    before = guest.writes()
    time.sleep(0.02)
    assert guest.writes() == before
    assert not guest.stop()


def test_a_guest_goes_on_when_all_vcpus_stand(held):
    guest, let_go = held
    for change in (guest.stop, guest.cont, lambda: guest.transition(RunState.RUNNING)):
        with pytest.raises(StateError, match="vCPU 1"):
            change()
    let_go()
    assert guest.cont()
    while guest.writes()[1] < 31:
        pass


def test_stops_wait_beside_each_other(held, monkeypatch):
    guest, let_go = held
    monkeypatch.setattr(guest_module, "STOP_LIMIT_S", 60)
    stopped = []
    threads = [threading.Thread(target=lambda: stopped.append(guest.stop())) for _ in range(3)]
    for thread in threads:
        thread.start()
    let_go()
    for thread in threads:
        thread.join(60)
    assert sorted(stopped) == [False, False, True]


def test_close_ends_a_stop_that_waits(held, monkeypatch):
    guest, let_go = held
    monkeypatch.setattr(guest_module, "STOP_LIMIT_S", 60)
    monkeypatch.setattr(guest_module, "CLOSE_LIMIT_S", 0.1)
    thread = threading.Thread(target=guest.stop)
    thread.start()
    while guest.running:
        pass
    guest.close()
    thread.join(20)
    assert not thread.is_alive()
    let_go()
