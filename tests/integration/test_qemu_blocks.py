"""`pysampler blocks` finds the RAM of a real QEMU, whatever holds it."""

import json
import re
import subprocess
import sys

import pytest
from real_qemu import PAGE_SIZE, Qemu, write

from pysampler import find_blocks
from pysampler.units import MIB

pytestmark = pytest.mark.integration

# QEMU has small blocks beside, of firmware and tables, which it samples and we need not find.
GUEST_RAM = 16 * MIB


def numa(backend, sizes, machine="q35"):
    arguments = ["-machine", machine, "-smp", str(len(sizes)), "-m", f"{sum(sizes)}M"]
    for node, size in enumerate(sizes):
        arguments += ["-object", f"{backend},id=ram{node},size={size}M"]
        arguments += ["-numa", f"node,cpus={node},memdev=ram{node}"]
    return arguments


CONFIGURATIONS = {
    "private RAM": ["-m", "192"],
    "private RAM and video RAM": ["-machine", "q35", "-m", "192", "-device", "VGA"],
    "one memfd": [
        *("-machine", "q35,memory-backend=ram0", "-m", "192M"),
        *("-object", "memory-backend-memfd,id=ram0,size=192M,share=on"),
    ],
    "memfds of one size": numa("memory-backend-memfd,share=on", [96, 96, 96]),
    "memfds of several sizes": numa("memory-backend-memfd,share=on", [64, 160], "pc"),
    "private backends of one size": numa("memory-backend-ram", [96, 96]),
    "private backends of several sizes": numa("memory-backend-ram", [160, 64]),
    "files": numa("memory-backend-file,share=on,mem-path=FOLDER", [64, 96]),
    "files of one size": numa("memory-backend-file,share=on,mem-path=FOLDER", [64, 64]),
    "huge pages": numa("memory-backend-memfd,share=on,hugetlb=on,hugetlbsize=2M", [32, 32]),
}


def free_huge_pages():
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        return int(re.search(r"HugePages_Free:\s+(\d+)", meminfo.read())[1])


@pytest.fixture(params=CONFIGURATIONS)
def qemu(request, tmp_path):
    if request.param == "huge pages" and free_huge_pages() < 32:
        pytest.skip("no 32 free huge pages here; sysctl vm.nr_hugepages=32")
    arguments = [word.replace("FOLDER", str(tmp_path)) for word in CONFIGURATIONS[request.param]]
    with Qemu(tmp_path, *arguments) as running:
        yield running


def test_the_blocks_found_are_those_of_info_ramblock_by_name_and_length(qemu):
    command = [sys.executable, "-m", "pysampler", "blocks", "--pid", str(qemu.pid), "--json"]
    rows = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["blocks"]
    assert all(row["access"] for row in rows), rows
    found = {row["idstr"]: row["used-length"] for row in rows}
    # QEMU puts a device's path before the name of its block.
    expected = {
        idstr.rpartition("/")[2]: length
        for idstr, length in qemu.ramblocks().items()
        if length >= GUEST_RAM
    }
    assert found == expected


def test_what_is_written_to_a_block_found_is_what_the_guest_sees_there(qemu):
    """QEMU itself reads guest-physical memory, where nodes follow each other in order."""
    physical = 0
    for number, block in enumerate(find_blocks(qemu.pid), start=1):
        if block.idstr == "vga.vram":
            continue
        for offset in (2 * MIB, block.used_length - PAGE_SIZE):
            write(block, [offset], number.to_bytes(8, "little"))
            reply = qemu.command(
                "human-monitor-command", command_line=f"xp /1gx {physical + offset:#x}"
            )
            assert int(reply.split()[1], 16) == number, block
        physical += block.used_length
