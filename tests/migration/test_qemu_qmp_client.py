"""QEMU's own client library, unchanged, drives a migration between two guests."""

import asyncio

import pytest
from qemu.qmp import ExecuteError, QMPClient

from pysampler.guest.process import GuestProcess

TIMEOUT_S = 60  # only a failing test waits for it

WORDS = ("--memory", "64M", "--vcpus", "2", "--zero", "50%", "--workload", "uniform:wps=1k,ws=4M")


async def until(events, status):
    """Return the statuses that MIGRATION told of, up to the wanted one."""
    seen = []
    while status not in seen:
        seen.append((await events.get())["data"]["status"])
    return seen


async def migrate(source, destination, address):
    events_on = {"capabilities": [{"capability": "events", "state": True}]}
    for side in (source, destination):
        await side.execute("migrate-set-capabilities", events_on)
    await destination.execute("migrate-incoming", {"uri": address})
    with pytest.raises(ExecuteError, match="Guest is waiting for an incoming migration"):
        await destination.execute("migrate", {"uri": address})
    await source.execute("migrate-set-parameters", {"max-bandwidth": 32 << 20})
    with source.listener("MIGRATION") as at_source, destination.listener("MIGRATION") as arrived:
        await source.execute("migrate", {"uri": address})
        assert await until(at_source, "completed") == ["setup", "active", "device", "completed"]
        assert await until(arrived, "completed") == ["active", "completed"]
    info = await source.execute("query-migrate")
    assert info["ram"]["total"] == 64 << 20
    assert info["ram"]["remaining"] == 0
    assert info["ram"]["normal"] >= (32 << 20) // 4096
    assert info["total-time"] >= info["downtime"]
    assert (await source.execute("query-status"))["status"] == "postmigrate"
    assert (await destination.execute("query-status"))["status"] == "running"


async def connected(guest, name):
    client = QMPClient(name)
    await client.connect(guest.ready["qmp"].removeprefix("unix:"))
    return client


def test_a_migration_from_setup_to_completed(tmp_path):
    async def drive(guest, other):
        source, destination = await connected(guest, "source"), await connected(other, "other")
        try:
            await migrate(source, destination, f"unix:{tmp_path}/migration")
        finally:
            await source.disconnect()
            await destination.disconnect()

    with (
        GuestProcess(*WORDS, "--qmp", f"unix:{tmp_path}/a") as guest,
        GuestProcess(*WORDS, "--incoming", "defer", "--qmp", f"unix:{tmp_path}/b") as other,
    ):
        asyncio.run(asyncio.wait_for(drive(guest, other), TIMEOUT_S))
