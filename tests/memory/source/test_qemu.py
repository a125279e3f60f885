"""Recognising a QEMU's RAM, on mappings as QEMU 7.2 makes them."""

import json
from dataclasses import replace

import pytest

from pysampler.host.maps import Mapping
from pysampler.memory.source.qemu import is_qemu, match_guest_ram
from pysampler.memory.source.qemu_options import configured_memory

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


def find_guest_ram(command, mappings):
    """Return idstr and mapping of each RAMBlock of guest RAM, those on the command line first."""
    ram = match_guest_ram(configured_memory(command, command[0]), mappings)
    return ram.named + ram.unnamed


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


@pytest.mark.parametrize(
    ("command", "executable", "answer"),
    [
        ("guest=vm1", "/usr/bin/qemu-system-x86_64", True),
        ("qemu-system-x86_64", "/usr/bin/python3.11", False),
        ("qemu-system-x86_64", "/usr/bin/qemu-system-x86_64 (deleted)", True),
        ("x", "/usr/libexec/qemu-kvm", True),
        ("x", "/nix/store/1/bin/.qemu-system-x86_64-wrapped", True),
        ("qemu-system-x86_64", "/usr/bin/qemu-img", False),
        ("", "", False),
    ],
)
def test_the_executable_tells_and_not_what_a_process_calls_itself(command, executable, answer):
    assert is_qemu([command], executable) is answer


@pytest.mark.parametrize(
    ("words", "mib"),
    [
        ("-m 1.5G", 1536),
        ("-m 1.5g", 1536),
        ("-m size=0.25G", 256),
        ("-m 0x100", 256),
        ("-m 262144K", 256),
        ("-m 268435456b", 256),
        ("-m 64 -m 512", 512),
        ("-m 512 -m slots=3", 512),
        ("-M q35,memory.size=256M", 256),
        ("--machine memory.size=268435456", 256),
    ],
)
def test_sizes_are_read_as_qemu_reads_them(words, mib):
    (memory,) = configured_memory(["qemu", *words.split(), "-nodefaults"], "qemu-system-x86_64")
    assert (memory.idstr, memory.length) == ("pc.ram", mib * MIB)


@pytest.mark.parametrize(
    ("words", "mib"),
    [
        ("-device VGA,id=v -set device.v.vgamem_mb=64", [64]),
        ("-device VGA,id=v,vgamem_mb=32 -set device.v.vgamem_mb=64", [64]),
        ("-device VGA,id=v -set device.w.vgamem_mb=64", [16]),
        ("-vga std -global VGA.vgamem_mb=32", [32]),
        ("-device VGA,vgamem_mb=64 -global VGA.vgamem_mb=32", [64]),
        ("-device VGA -global driver=VGA,property=vgamem_mb,value=32", [32]),
        ("-device qxl -global qxl.ram_size=33554432 -global qxl.vram_size=16777216", [32, 16]),
        ("-device qxl,vram_size=16777216,vram_size_mb=32,vram64_size_mb=0", [64, 32]),
        ("-device VGA -global VGA -global =1 -global VGA.=3 -set device. -set v -set", [16]),
    ],
)
def test_video_ram_is_as_set_by_id_or_for_all_of_a_kind(words, mib):
    configured = configured_memory(
        ["qemu", *words.split(), "-nodefaults", "-m", "64"], "qemu-system-x86_64"
    )
    assert [memory.length // MIB for memory in configured if memory.is_video] == mib


@pytest.mark.parametrize(
    "words", ["", "-m much", "-m 1.5.5G", "-m -1", "-m 1e3", "-m nan", "-m 99999999999E", "-m"]
)
def test_no_size_is_assumed_and_the_longest_is_main_memory(words):
    maps = [*OTHERS, *ram(1000, 1536), *ram(10, 64)]
    assert found(f"-nodefaults {words}".rstrip(), maps) == [
        ("pc.ram", 1000, 1536),
        (f"ram@{BASE + 10 * MIB:x}", 10, 64),
    ]


def test_a_stack_below_a_dimm_is_no_part_of_it_and_nothing_is_found_twice():
    maps = [
        *OTHERS,
        *ram(2000, 256),
        mapping(BASE + 992 * MIB, 8 * MIB),
        *ram(1000, 128),
    ]
    command = (
        "-nodefaults -m 256,slots=1,maxmem=1G -object memory-backend-ram,id=d,size=128M"
        " -device pc-dimm,memdev=d"
    )
    assert found(command, maps) == [("pc.ram", 2000, 256), ("d", 1000, 128)]
    assert found("-nodefaults -m 256", maps)[1][1:] == (1000, 128)


def test_a_stack_below_video_ram_is_no_phantom():
    maps = [*OTHERS, *ram(1000, 512), mapping(BASE + 2 * MIB, 8 * MIB), *ram(10, 16)]
    assert found("-m 512", maps) == [("pc.ram", 1000, 512), ("vga.vram", 10, 16)]


def test_the_tail_of_ram_that_is_larger_than_said_is_not_taken():
    maps = [*OTHERS, *ram(1000, 1536)]
    assert found("-nodefaults -m 128", maps) == [(f"ram@{BASE + 1000 * MIB:x}", 1000, 1536)]


def test_flags_tell_ram_from_what_looks_like_it():
    ram_flags = frozenset({"rd", "wr", "dc", "hg"})
    stacks = [
        replace(m, flags=frozenset({"rd", "wr", "nh"}))
        for m in [*OTHERS, *ram(500, 24), *ram(600, 64), mapping(BASE, 64 * MIB, "rw-s", 9, "/f")]
    ]
    blocks = [replace(m, flags=ram_flags) for m in ram(2000, 256)[:1]]
    blocks += [
        # Without a guard page, split in two, and not aligned as this QEMU's is.
        replace(mapping(BASE + 1001 * MIB, 16 * MIB), flags=ram_flags),
        replace(mapping(BASE + 1017 * MIB, 16 * MIB), flags=ram_flags),
        replace(mapping(BASE + 3000 * MIB, 32 * MIB, "rw-s", 8, "/memfd:x"), flags=ram_flags),
        # Registers of a device that is passed through.
        replace(
            mapping(BASE + 4000 * MIB, 256 * MIB, "rw-s", 7, "/dev/vfio/1"),
            flags=ram_flags | {"io"},
        ),
    ]
    assert found("-nodefaults -m 256", stacks + blocks) == [
        ("pc.ram", 2000, 256),
        (f"ram@{BASE + 1001 * MIB:x}", 1001, 32),
        ("x", 3000, 32),
    ]


@pytest.mark.parametrize(
    ("name", "idstr"),
    [
        ("/memfd:e (deleted)", "e"),
        ("/memfd:0000:00:01.0/vga.vram (deleted)", "vga.vram"),
        ("/dev/shm/qemu_back_mem.dimm.x.aEzgMZ (deleted)", "dimm.x"),
        ("/mnt/pmem/disk", "disk"),
    ],
)
@pytest.mark.parametrize("rights", ["rw-s", "rw-p"])
def test_what_no_option_names_is_named_by_its_file(name, idstr, rights):
    maps = [*OTHERS, *ram(1000, 256), mapping(BASE, 64 * MIB, rights, 5, name)]
    assert found("-nodefaults -m 256", maps) == [("pc.ram", 1000, 256), (idstr, 0, 64)]


@pytest.mark.parametrize(
    ("name", "rights"),
    [
        ("/memfd:displaysurface (deleted)", "rw-s"),
        ("/dev/dri/card0", "rw-s"),
        ("/dev/vfio/1", "rw-s"),
        ("/disk", "r--s"),
        ("/memfd:tcg-jit (deleted)", "rw-s"),
    ],
)
def test_pictures_devices_and_code_are_no_ram(name, rights):
    maps = [*OTHERS, *ram(1000, 256), mapping(BASE, 64 * MIB, rights, 5, name)]
    maps += [mapping(BASE + 64 * MIB, 64 * MIB, "r-xs", 5, name)] if "tcg" in name else []
    assert found("-nodefaults -m 256", maps) == [("pc.ram", 1000, 256)]


def test_a_file_of_huge_pages_is_longer_than_its_block():
    name = "/dev/hugepages/qemu_back_mem.m.aaaaaa (deleted)"
    maps = [*OTHERS, mapping(BASE, 66 * MIB, "rw-s", 5, name)]
    command = (
        "-nodefaults -M memory-backend=m"
        " -object memory-backend-file,id=m,size=65M,mem-path=/dev/hugepages,share=on"
    )
    assert found(command, maps) == [("m", 0, 65)]


def test_a_file_that_two_backends_share_is_told_apart_by_offset():
    parts = [
        replace(mapping(BASE + at * MIB, 64 * MIB, "rw-s", 5, "/f"), offset=offset * MIB)
        for at, offset in [(0, 64), (1000, 0)]
    ]
    command = "-nodefaults -numa node,memdev=a -numa node,memdev=b" + "".join(
        f" -object memory-backend-file,id={name},size=64M,mem-path=/f,share=on,offset={offset}M"
        for name, offset in [("a", 0), ("b", 64)]
    )
    assert found(command, [*OTHERS, *parts]) == [("a", 1000, 64), ("b", 0, 64)]


@pytest.mark.parametrize("rights", ["rw-p", "rw-s"])
def test_two_backends_of_one_file_are_two_blocks(rights):
    maps = [mapping(BASE + at * MIB, 64 * MIB, rights, 5, "/template") for at in (0, 1000)]
    command = "-nodefaults -numa node,memdev=a -numa node,memdev=b" + "".join(
        f" -object memory-backend-file,id={name},size=64M,mem-path=/template" for name in "ab"
    )
    assert found(command, [*OTHERS, *maps]) == [("a", 1000, 64), ("b", 0, 64)]


def test_what_command_line_and_mappings_do_not_agree_on_is_said():
    configured = configured_memory(["qemu", "-m", "512", "-nodefaults"], "qemu-system-x86_64")
    assert (
        list(match_guest_ram(configured, sorted(ram(0, 512), key=lambda m: m.start)).remarks())
        == []
    )
    plugged = match_guest_ram(configured, sorted(ram(0, 512) + ram(600, 64), key=lambda m: m.start))
    unexplained, sums = plugged.remarks()
    assert "not explained by QEMU's command line: ram@" in unexplained
    assert "(64 MiB)" in unexplained
    assert sums == "QEMU's command line says 512 MiB of guest RAM, 576 MiB were found"


def test_a_dimm_as_large_as_main_memory_is_made_before_it():
    maps = [*OTHERS, *ram(1000, 256), *ram(2000, 256)]
    command = (
        "-nodefaults -m 256 -object memory-backend-ram,id=d,size=256M -device pc-dimm,memdev=d"
    )
    assert found(command, maps) == [("pc.ram", 1000, 256), ("d", 2000, 256)]
