"""Recognising a QEMU's RAM, on mappings as QEMU 7.2 makes them."""

import json

import pytest

from pysampler.source.maps import Mapping
from pysampler.source.qemu import find_guest_ram, is_qemu

MIB = 1 << 20
BASE = 0x7F0000000000
MEMFD = "/memfd:memory-backend-memfd (deleted)"


def mapping(start, length, rights="rw-p", inode=0, name=""):
    return Mapping(
        start=start,
        end=start + length,
        writable="w" in rights,
        executable="x" in rights,
        accessible=rights[:3] != "---",
        shared=rights[3] == "s",
        offset=0,
        inode=(1, inode) if inode else (0, 0),
        name=name,
    )


def ram(at_mib, mib):
    """Anonymous RAM and its guard page."""
    start = BASE + at_mib * MIB
    return [mapping(start, mib * MIB), mapping(start + mib * MIB, 4096, "---p")]


def found(command, mappings):
    command = ["/usr/bin/qemu-system-x86_64", *command.split()]
    return [
        (idstr, (m.start - BASE) // MIB, m.length // MIB)
        for idstr, m in find_guest_ram(command, sorted(mappings, key=lambda m: m.start))
    ]


OTHERS = [
    mapping(BASE - 64 * MIB, 64 * MIB - 4096, "rwxp"),  # translated code
    mapping(BASE - 128 * MIB, 132 << 10),  # an arena of the C library
    mapping(BASE - 128 * MIB + (132 << 10), 64 * MIB - (132 << 10), "---p"),
    mapping(BASE - 300 * MIB + 4096, 8 * MIB),  # a thread's stack
    mapping(BASE - 400 * MIB, 256 << 10),  # a ROM
    mapping(BASE - 400 * MIB + (256 << 10), 4096, "---p"),
]


@pytest.mark.parametrize("memory", ["-m 512", "-m 512M", "-m size=512M,slots=2,maxmem=4G"])
def test_default_ram_is_pc_ram_and_video_ram_follows(memory):
    maps = [*OTHERS, *ram(1000, 512), *ram(10, 16)]
    assert found(f"-smp 2 {memory} -S", maps) == [("pc.ram", 1000, 512), ("vga.vram", 10, 16)]


def test_without_m_there_are_128_mib():
    assert found("-S", [*OTHERS, *ram(100, 128)]) == [("pc.ram", 100, 128)]


def test_anonymous_backends_of_one_size_fall_in_address():
    maps = [*OTHERS, *ram(1000, 256), *ram(2000, 256)]
    command = (
        "-m 512 -object memory-backend-ram,id=one,size=256M "
        "-object memory-backend-ram,size=256M,id=two -numa node,memdev=one -numa node,memdev=two"
    )
    assert found(command, maps) == [("one", 2000, 256), ("two", 1000, 256)]


def test_memfds_of_one_size_rise_in_inode():
    maps = [
        *OTHERS,
        mapping(BASE, 256 * MIB, "rw-s", 27, MEMFD),
        mapping(BASE + 1000 * MIB, 256 * MIB, "rw-s", 25, MEMFD),
    ]
    command = (
        "-object memory-backend-memfd,id=one,size=256M -object memory-backend-memfd,id=two,size=256M"
        " -numa node,memdev=one -numa node,memdev=two"
    )
    assert found(command, maps) == [("one", 1000, 256), ("two", 0, 256)]


def test_libvirts_json_objects_are_read():
    backend = {
        "qom-type": "memory-backend-file",
        "id": "pc.ram",
        "mem-path": "/dev/shm/a,b",
        "size": 268435456,
    }
    maps = [*OTHERS, mapping(BASE, 256 * MIB, "rw-s", 3, "/dev/shm/a,b")]
    command = [
        "/usr/libexec/qemu-kvm", "-machine", "pc-q35,memory-backend=pc.ram", "-object", json.dumps(backend),
    ]  # fmt: skip
    assert is_qemu(command)
    assert [idstr for idstr, _ in find_guest_ram(command, maps)] == ["pc.ram"]


def test_a_doubled_comma_is_one():
    maps = [*OTHERS, mapping(BASE, 256 * MIB, "rw-s", 3, "/dev/shm/a,b")]
    command = (
        "-M q35,memory-backend=m -object memory-backend-file,id=m,size=256M,mem-path=/dev/shm/a,,b"
    )
    assert found(command, maps) == [("m", 0, 256)]


def test_a_file_in_the_folder_of_mem_path_is_found():
    name = "/dev/hugepages/qemu_back_mem.pc.ram.Ab12 (deleted)"
    maps = [*OTHERS, mapping(BASE, 512 * MIB, "rw-p", 3, name)]
    assert found("-m 512 -mem-path /dev/hugepages", maps) == [("pc.ram", 0, 512)]


def test_ram_that_the_kernel_joined_with_its_neighbour_is_its_end():
    start = BASE + 100 * MIB
    maps = [
        *OTHERS,
        mapping(start - 8 * MIB, 520 * MIB),
        mapping(start + 512 * MIB, 4096, "---p"),
    ]
    assert found("-m 512", maps) == [("pc.ram", 100, 512)]


def test_ram_that_a_policy_split_is_one():
    maps = [
        *OTHERS,
        mapping(BASE, 200 * MIB),
        mapping(BASE + 200 * MIB, 312 * MIB),
        mapping(BASE + 512 * MIB, 4096, "---p"),
    ]
    assert found("-m 512", maps) == [("pc.ram", 0, 512)]


def test_memory_plugged_in_later_is_found():
    maps = [*OTHERS, *ram(1000, 512), *ram(2000, 1024)]
    assert found("-m 512", maps) == [
        ("pc.ram", 1000, 512),
        (f"ram@{BASE + 2000 * MIB:x}", 2000, 1024),
    ]


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("/usr/bin/qemu-system-aarch64", True),
        ("qemu-kvm", True),
        ("/usr/bin/kvm", True),
        ("qemu-img", False),
        ("python3", False),
        ("", False),
    ],
)
def test_a_qemu_is_known_by_its_name(program, answer):
    assert is_qemu([program]) is answer
