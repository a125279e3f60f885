"""Run states as a real QEMU 10 has them: the same bytes to it and to our guest."""

import json

import pytest
from qmp_fakes import Client, serving
from real_qemu import PROGRAM_10, Qemu

from pysampler.guest import BlockSpec, Guest, Phases, allocate
from pysampler.guest.phases import assign

pytestmark = pytest.mark.integration

SHOWN = ({"execute": "query-status"},
         {"execute": "human-monitor-command", "arguments": {"command-line": "info status"}})  # fmt: skip


def answers(client, commands):
    """Names of the events and whole replies, in order."""
    lines = []
    for command in commands:
        client.send(json.dumps(command).encode())
        while "event" in (reply := json.loads(client.line())):
            lines.append(reply["event"])
        lines.append(reply)
    return lines


@pytest.mark.parametrize("arguments", [(), ("-incoming", "defer")])
def test_stop_and_cont_do_what_they_do_in_qemu(tmp_path, arguments):
    ram = allocate([BlockSpec("pc.ram", 31 * 4096)], zero=1.0)
    guest = Guest(ram, Phases.steady(assign(["idle"], 1)), incoming=bool(arguments))
    address = f"unix:{tmp_path}/qemu"
    commands = [*SHOWN]
    for name in ("stop", "cont", "cont", "stop", "stop", "cont"):
        commands += [{"execute": name}, *SHOWN]
    try:
        with (
            Qemu(tmp_path, "-m", "64", *arguments, "-qmp", f"{address},server=on,wait=off",
                 program=PROGRAM_10),
            serving(f"unix:{tmp_path}/ours", guest) as server,
            Client(address) as qemu,
            Client(server.address) as ours,
        ):  # fmt: skip
            assert answers(qemu.negotiate(), commands) == answers(ours.negotiate(), commands)
    finally:
        guest.close()
