# SPDX-License-Identifier: MIT
"""Whatever goes wrong, one guest runs, the other end says so, and nothing hangs."""

import contextlib
import random
import socket
import time

import pytest
from pair import End, Pair, make_guest, same_ram

from pysampler.errors import StateError
from pysampler.guest import BlockSpec
from pysampler.guest.run_state import RunState
from pysampler.migration.status import MigrationStatus

MIB = 1 << 20
BUSY = "uniform:wps=5k"


@pytest.fixture
def make_pair(tmp_path):
    with contextlib.ExitStack() as stack:

        def make(*words, pages=8192, stop=False, there=None, parameters=(), capabilities=()):
            words = words or (BUSY,)
            source = make_guest(*words, pages=pages, zero=0.2)
            destination = make_guest(*words, **{"pages": pages, **(there or {})}, incoming=True)
            pair = Pair(tmp_path, source, destination, stop=stop)
            stack.callback(pair.close)
            pair.source.migration.set_capabilities([(name, True) for name in capabilities])
            pair.source.migration.set_parameters(dict(parameters))
            source.cont()
            return pair

        yield make


def writes_go_on(guest):
    before, deadline = guest.writes(), time.monotonic() + 10
    while guest.writes() == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def check_one_runs(pair):
    """Exactly one of both guests runs: here if it has not completed, else there."""
    status = pair.source.wait_until_ended().status
    deadline = time.monotonic() + 10
    while pair.source.guest.state is RunState.FINISH_MIGRATE:  # it is being continued
        assert time.monotonic() < deadline
        time.sleep(0.002)
    if status == "completed":
        pair.destination.wait_until_ended()
        assert pair.source.guest.state is RunState.POSTMIGRATE
        assert pair.destination.guest.state is RunState.RUNNING
        assert writes_go_on(pair.destination.guest)
    else:
        assert pair.source.guest.state is RunState.RUNNING
        assert not pair.destination.guest.running
        assert writes_go_on(pair.source.guest)
    return status


def test_a_refused_connection(tmp_path):
    guest = make_guest(BUSY)
    end = End(guest)
    try:
        guest.cont()
        end.migration.migrate(f"unix:{tmp_path}/nobody")
        info = end.wait_until_ended()
        assert info.to_json() == {
            "status": "failed",
            "error-desc": f"Failed to connect to '{tmp_path}/nobody': No such file or directory",
        }
        assert guest.running
        # The next one begins anew.
        end.migration.migrate("tcp:127.0.0.1:1")
        desc = "Failed to connect to '127.0.0.1:1': Connection refused"
        assert end.wait_until_ended().error_desc == desc
    finally:
        end.close()


@pytest.mark.parametrize("seed", range(6))
def test_cancel_at_any_moment(make_pair, seed):
    pair = make_pair(parameters={"max-bandwidth": 100 * MIB, "downtime-limit": 50})
    rng = random.Random(seed)
    pair.migrate()
    time.sleep(rng.random() * 0.5)
    pair.source.migration.cancel()
    pair.source.migration.cancel()
    status = check_one_runs(pair)
    assert status in {"cancelled", "completed"}
    if status == "cancelled":
        assert pair.source.migration.info().to_json() == {"status": "cancelled"}
        told = [event[1] for event in pair.source.events if event[0] == "MIGRATION"]
        assert told[-1] == "cancelled"
        assert "cancelling" in told


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("returns", [False, True])
def test_a_destination_that_goes_at_any_moment(make_pair, seed, returns):
    pair = make_pair(
        parameters={"max-bandwidth": 100 * MIB, "downtime-limit": 50},
        capabilities=["return-path"] * returns,
    )
    pair.migrate()
    time.sleep(random.Random(seed).random() * 0.4)
    ran = pair.destination.guest.running
    assert pair.destination.migration.close()
    info = pair.source.wait_until_ended()
    if info.status == "failed":
        assert info.error_desc in {
            "Unable to write to socket: Broken pipe",
            "Unable to write to socket: Connection reset by peer",
            f"Failed to connect to '{pair.uri[5:]}': No such file or directory",
            f"Failed to connect to '{pair.uri[5:]}': Connection refused",
        }
        assert pair.source.guest.running or pair.destination.guest.running
        assert ran or pair.source.guest.state is not RunState.POSTMIGRATE
        assert writes_go_on(pair.source.guest)
    else:
        assert info.status == "completed"


@pytest.mark.parametrize("seed", range(6))
def test_a_source_that_goes_at_any_moment(make_pair, seed):
    pair = make_pair(parameters={"max-bandwidth": 100 * MIB, "downtime-limit": 50})
    pair.migrate()
    time.sleep(random.Random(seed).random() * 0.4)
    assert pair.source.migration.close()
    if pair.source.migration.info().ram is None and pair.destination.status == "setup":
        return  # it has gone before it connected, and another one may come
    info = pair.destination.wait_until_ended()
    if info.status == "failed":
        assert info.error_desc.startswith("load of migration failed: ")
        assert pair.destination.failures == [info.error_desc]
        assert pair.destination.guest.state is RunState.INMIGRATE


@pytest.fixture
def stalled_peer(tmp_path):
    """Listens, and may accept, but never reads."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(f"{tmp_path}/stalled")
        listener.listen(1)
        yield lambda: stack.enter_context(listener.accept()[0])


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_link_that_stalls_for_good(tmp_path, stalled_peer, how):
    guest = make_guest(BUSY, pages=8192)
    end = End(guest)
    try:
        guest.cont()
        end.migration.migrate(f"unix:{tmp_path}/stalled")
        stalled_peer()
        end.wait_for(("MIGRATION", "active"))
        time.sleep(0.3)
        assert end.status == "active"
        began = time.monotonic()
        if how == "cancel":
            end.migration.cancel()
            assert end.wait_until_ended(5).status == "cancelled"
        else:
            assert end.migration.close()
        assert time.monotonic() - began < 3
        assert guest.running
    finally:
        end.close()


def test_a_link_slower_than_anybody_waits(make_pair):
    pair = make_pair()
    slow = End(make_guest(BUSY, pages=8192), link_speed=1)
    try:
        slow.migration.migrate(pair.uri)
        slow.wait_for(("MIGRATION", "active"))
        time.sleep(0.2)
        slow.migration.cancel()
        assert slow.wait_until_ended(5).status == "cancelled"
    finally:
        slow.close()


def test_pause_before_switchover(make_pair):
    pair = make_pair(capabilities=["pause-before-switchover"])
    pair.migrate()
    pair.source.wait_for(("MIGRATION", "pre-switchover"))
    guest = pair.source.guest
    assert guest.state is RunState.FINISH_MIGRATE
    with pytest.raises(StateError, match="Migration is not finalized yet"):
        guest.cont()
    with pytest.raises(StateError, match="Migration not in expected state: pre-switchover"):
        pair.source.migration.proceed("device")
    pair.source.migration.proceed("pre-switchover")
    assert check_one_runs(pair) == "completed"
    told = [event for event in pair.source.events if event[0] != "MIGRATION_PASS"]
    statuses = ("setup", "active", "pre-switchover", "device", "completed")
    expected = [("MIGRATION", status) for status in statuses]
    expected.insert(2, ("STOP",))
    assert told == expected


def test_cancel_in_the_pause_before_the_switchover(make_pair):
    pair = make_pair(capabilities=["pause-before-switchover"])
    pair.migrate()
    pair.source.wait_for(("MIGRATION", "pre-switchover"))
    pair.source.migration.cancel()
    assert check_one_runs(pair) == "cancelled"
    assert pair.source.events[-3:] == [
        ("MIGRATION", "cancelling"),
        ("RESUME",),
        ("MIGRATION", "cancelled"),
    ]


def test_a_stopped_guest_migrates_and_stays_so(make_pair):
    pair = make_pair()
    pair.source.guest.stop()
    reply = pair.migrated()
    assert reply.status == "completed"
    assert pair.destination.guest.state is RunState.PAUSED
    assert same_ram(pair.source.guest, pair.destination.guest)
    assert ("STOP",) not in pair.source.events
    assert ("RESUME",) not in pair.destination.events


def test_stop_and_cont_while_it_migrates(make_pair):
    pair = make_pair(parameters={"max-bandwidth": 60 * MIB, "downtime-limit": 50})
    pair.migrate()
    for _ in range(5):
        time.sleep(0.02)
        pair.source.guest.stop()
        time.sleep(0.02)
        with contextlib.suppress(StateError):  # it is at its end already
            pair.source.guest.cont()
    assert check_one_runs(pair) == "completed"


def test_two_at_once_and_settings_meanwhile(make_pair):
    pair = make_pair(parameters={"max-bandwidth": 10 * MIB})
    pair.migrate()
    migration = pair.source.migration
    with pytest.raises(StateError, match="There's a migration process in progress"):
        pair.migrate()
    with pytest.raises(StateError, match="There's a migration process in progress"):
        migration.set_capabilities([("auto-converge", True)])
    with pytest.raises(StateError, match=r"Migration not in expected state: (setup|active)"):
        migration.proceed("pre-switchover")
    pair.source.wait_for(("MIGRATION", "active"))
    migration.set_parameters({"max-bandwidth": 0})  # takes effect while it runs
    assert check_one_runs(pair) == "completed"
    with pytest.raises(StateError, match="paused due to previous migration"):
        pair.migrate()
    with pytest.raises(StateError, match="The incoming migration has already been started"):
        pair.destination.migration.incoming(pair.uri)
    # The source can go on, as after a destination that was lost.
    assert pair.source.guest.cont()


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"pages": 4096}, "pc.ram has 32 MiB there and 16 MiB here; start this guest with"),
        ({"vcpus": 2}, "1 vCPUs there and 2 here; start this guest with --vcpus 1"),
        ({"blocks": [BlockSpec("vga", 65536)]}, "there is no block vga there; start this guest"),
    ],
)
def test_a_destination_of_another_shape(make_pair, there, reason):
    pair = make_pair(there=there)
    pair.migrate()
    info = pair.destination.wait_until_ended()
    assert info.status == "failed"
    assert info.error_desc.startswith("load of migration failed: " + reason)
    assert check_one_runs(pair) == "failed"
    # A destination that failed has had its chance.
    with pytest.raises(StateError, match="The incoming migration has already been started"):
        pair.destination.migration.incoming(pair.uri)


def test_a_failure_leaves_a_guest_that_can_be_migrated(make_pair, tmp_path):
    pair = make_pair(capabilities=["auto-converge"])
    pair.source.migration.migrate(f"unix:{tmp_path}/nobody")
    assert pair.source.wait_until_ended().status == "failed"
    assert pair.migrated().status == "completed"
    assert MigrationStatus(pair.destination.status) is MigrationStatus.COMPLETED


def test_the_next_migration_may_begin_as_soon_as_one_has_failed(make_pair, tmp_path):
    pair = make_pair(capabilities=["auto-converge"])
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/hangs-up")
        listener.listen(8)
        for _ in range(8):
            pair.source.migration.migrate(f"unix:{tmp_path}/hangs-up")
            listener.accept()[0].close()
            assert pair.source.wait_until_ended().status == "failed"
    assert pair.migrated().status == "completed"
