"""`pysampler blocks` finds the RAM of a real QEMU, whatever holds it."""

import functools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from qemu_configurations import CONFIGURATIONS, Configuration
from real_qemu import PAGE_SIZE, PROGRAM, PROGRAM_10, Qemu, write

from pysampler.memory.ramblock import FileMemory
from pysampler.memory.source import find_blocks, find_ram
from pysampler.units import MIB

pytestmark = pytest.mark.integration

# QEMU has small blocks beside, of firmware and tables, which it samples and we need not find.
GUEST_RAM = 16 * MIB

PROGRAMS = {"installed": (PROGRAM,), "10": PROGRAM_10}
TABLE = [
    pytest.param(program, name, id=f"{name}-{program}")
    for name in CONFIGURATIONS
    for program in PROGRAMS
]


def free_huge_pages():
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        return int(re.search(r"HugePages_Free:\s+(\d+)", meminfo.read())[1])


@functools.cache
def major_version(program):
    if shutil.which(program) is None:  # whoever starts it will say so
        return 10
    text = subprocess.run([program, "--version"], capture_output=True, check=True, text=True).stdout
    return int(re.search(r"version (\d+)", text)[1])


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield name


def start(folder, program, configuration, *, asked=False):
    """Start a QEMU, with one more monitor at FOLDER/asked if that is wanted."""
    program = PROGRAMS[program]
    if not configuration.since <= major_version(program[0]) <= configuration.until:
        pytest.skip(f"QEMU {configuration.since} to {configuration.until} know it")
    if configuration.huge_pages and free_huge_pages() < configuration.huge_pages:
        pytest.skip(f"no {configuration.huge_pages} free huge pages; sysctl vm.nr_hugepages=32")
    if configuration.accelerator == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm here")
    (Path(folder) / "config").write_text(configuration.config)
    limits = resource.getrlimit(resource.RLIMIT_STACK)
    if configuration.stack:
        resource.setrlimit(resource.RLIMIT_STACK, (configuration.stack, limits[1]))
    try:
        return Qemu(
            Path(folder),
            *(word.replace("FOLDER", folder) for word in configuration.arguments),
            *(["-qmp", f"unix:{folder}/asked,server=on,wait=off"] if asked else []),
            program=program,
            called=configuration.called,
            accelerator=configuration.accelerator,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, limits)


def start_row(folder, program, name, *, asked=False):
    configuration = CONFIGURATIONS[name]
    qemu = start(folder, program, configuration, asked=asked)
    try:
        for command, arguments in configuration.then:
            placed = {
                key: value.replace("FOLDER", folder) if isinstance(value, str) else value
                for key, value in arguments.items()
            }
            qemu.command(command, **placed)
    except BaseException:
        qemu.__exit__()
        raise
    return qemu


@pytest.mark.parametrize(("program", "name"), TABLE)
def test_the_blocks_found_are_those_of_info_ramblock(folder, program, name):
    n_unnamed = CONFIGURATIONS[name].n_unnamed
    with start_row(folder, program, name) as qemu:
        found = find_ram(qemu.pid)
        expected = guest_ram(qemu)
        blocks = [(block.idstr.split("#")[0], block.used_length) for block in found.blocks]
        assert Counter(n for _, n in blocks) == Counter(n for _, n in expected), blocks
        assert (Counter(expected) - Counter(blocks)).total() <= n_unnamed, (blocks, expected)
        # One line for what is not explained, one for the sum.
        assert len(found.remarks) == (2 if n_unnamed else 0), found.remarks
        addresses = qemu.addresses()  # of QEMU 10
        if addresses:
            told = {(tail(idstr), addresses[idstr]) for idstr, _ in guest_ram(qemu, tail=str)}
            where = {(block.idstr.split("#")[0], address_of(block)) for block in found.blocks}
            assert len(told - where) <= n_unnamed, (told, where)
            assert {at for _, at in told} == {at for _, at in where}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "name", ["a DIMM plugged in", "DIMMs and video", "private files", "a private file plugged in"]
)
def test_a_monitor_that_is_asked_tells_every_name(folder, program, name):
    with start_row(folder, program, name, asked=True) as qemu:
        found = find_ram(qemu.pid, f"unix:{folder}/asked")
        blocks = [(block.idstr, block.used_length) for block in found.blocks]
        assert Counter(blocks) == Counter(guest_ram(qemu))
        assert found.remarks == []


def test_what_only_the_monitor_knows_is_told_from_what_was_found(folder):
    """A backend without a device is no RAMBlock that QEMU samples or migrates."""
    configuration = Configuration(["-m", "64", "-object", "memory-backend-memfd,id=spare,size=32M"])
    with start(folder, "installed", configuration, asked=True) as qemu:
        assert {block.idstr for block in find_blocks(qemu.pid)} == {"pc.ram", "spare"}
        found = find_ram(qemu.pid, f"{folder}/asked")
        assert [block.idstr for block in found.blocks] == ["pc.ram"]
        assert found.remarks == [
            "not sampled, since it is no RAMBlock that QEMU migrates: spare (32 MiB)"
        ]


def test_the_command_says_both_sums_and_what_is_not_explained(folder):
    with start_row(folder, "installed", "a DIMM plugged in") as qemu:
        command = [sys.executable, "-m", "pysampler", "blocks", "--pid", str(qemu.pid), "--json"]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        rows = json.loads(done.stdout)["blocks"]
        assert [row["used-length"] // MIB for row in rows] == [192, 256]
        assert all(row["access"] for row in rows), rows
        unexplained, sums = done.stderr.splitlines()
        assert "not explained by QEMU's command line: ram@" in unexplained
        assert sums.endswith("command line says 192 MiB of guest RAM, 448 MiB were found")


@pytest.mark.parametrize(
    ("name", "physical"),
    [
        ("ram of one size", {"ram0": 0, "ram1": 96 * MIB}),
        ("memfds of one size", {"ram0": 0, "ram1": 96 * MIB, "ram2": 192 * MIB}),
        ("files of one size", {"ram0": 0, "ram1": 64 * MIB}),
        ("a DIMM as large as main memory", {"pc.ram": 0, "d": 1 << 32}),
    ],
)
def test_what_is_written_to_a_block_found_is_what_the_guest_sees_there(folder, name, physical):
    """QEMU itself reads guest-physical memory."""
    with start_row(folder, "installed", name) as qemu:
        blocks = find_blocks(qemu.pid)
        assert {block.idstr for block in blocks} == set(physical)
        for number, block in enumerate(blocks, start=1):
            for offset in (2 * MIB, block.used_length - PAGE_SIZE):
                write(block, [offset], number.to_bytes(8, "little"))
                where = physical[block.idstr] + offset
                reply = qemu.command("human-monitor-command", command_line=f"xp /1gx {where:#x}")
                assert int(reply.split()[1], 16) == number, block


def tail(idstr):
    """The name without the path of its device, which QEMU puts before it."""
    return idstr.rpartition("/")[2]


def guest_ram(qemu, tail=tail):
    """What QEMU says of its larger RAMBlocks."""
    return [
        (tail(idstr), length) for idstr, length in qemu.ramblocks().items() if length >= GUEST_RAM
    ]


def address_of(block):
    memory = block.memory
    return (memory.user if isinstance(memory, FileMemory) else memory).address
