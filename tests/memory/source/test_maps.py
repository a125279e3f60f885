"""Text of /proc/PID/maps as hostile processes make it."""

import os
from pathlib import Path

import pytest
from subject import LENGTH, subject

from pysampler.errors import SourceError
from pysampler.host.maps import is_device, read_maps
from pysampler.host.smaps import read_smaps
from pysampler.memory.source import find_blocks

FORGED = "7f0000000000-7f0040000000 rw-s 00000000 00:01 7 "
NAMES = [
    f"a\r{FORGED}",
    f"a\n{FORGED}",
    f"a\x0b{FORGED}",
    f"a\x0c{FORGED}\x1c\x1d\x1e\x85",
    f"a\N{LINE SEPARATOR}{FORGED}\N{PARAGRAPH SEPARATOR}",
    "a (deleted)",
    "  two  spaces  ",
    "\x1b[2J\x1b]0;owned\x07",
    b"not \xff\xfe UTF-8",
    b"\xed\xa0\x80 half a surrogate",
]


def map_file(path):
    path = os.fsdecode(path)
    return f"f = open({path!r}, 'w+b'); f.truncate(LENGTH); m = mmap.mmap(f.fileno(), LENGTH)"


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_makes_no_mapping_and_no_error(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    with subject(map_file(path)) as process:
        mappings = read_maps(process.pid)
        assert len(mappings) == Path(f"/proc/{process.pid}/maps").read_bytes().count(b"\n")
        assert all(m.start != 0x7F0000000000 for m in mappings)
        starts = [m.start for m in mappings]
        assert starts == sorted(starts)
        (block,) = find_blocks(process.pid)
        assert block.used_length == LENGTH
        assert block.idstr.isprintable()
        block.idstr.encode()


def test_a_name_that_is_not_text_still_leads_to_its_file(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff\r x "
    with subject(map_file(path)) as process:
        (name,) = {m.name for m in read_maps(process.pid) if os.fsdecode(tmp_path) in m.name}
        assert os.fsencode(name) == path


def test_maps_with_flags_are_the_same_mappings():
    with subject("m = mmap.mmap(-1, LENGTH); m.madvise(mmap.MADV_DONTFORK)") as process:
        address = int(process("answer = address_of(m)"))
        plain, flagged = read_maps(process.pid), list(read_smaps(process.pid))
        assert [(m.start, m.end, m.name) for m in plain] == [
            (m.start, m.end, m.name) for m in flagged
        ]
        assert {m.start for m in flagged if "dc" in (m.flags or ())} == {address}


def test_flags_of_a_file_whose_name_is_like_smaps(tmp_path):
    path = tmp_path / f"a\rVmFlags: dc\x0b{FORGED}"
    with subject(map_file(os.fsencode(path))) as process:
        flagged = list(read_smaps(process.pid))
        assert not any("dc" in (m.flags or ()) for m in flagged)
        assert len(flagged) == len(read_maps(process.pid))


def test_thousands_of_mappings_are_read():
    with subject("m = mmap.mmap(-1, 8000 * 4096, flags=mmap.MAP_PRIVATE)") as process:
        process("libc = ctypes.CDLL(None); a = address_of(m)")
        process(
            "s = ctypes.c_size_t; [libc.mprotect(s(a + i * 8192), s(4096), 1) for i in range(4000)]"
        )
        assert len(read_maps(process.pid)) > 7900
        with pytest.raises(SourceError, match="no guest RAM to find"):
            find_blocks(process.pid)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("/dev/dri/card0", True),
        ("/dev/vfio/1", True),
        ("/dev/shm/ram", False),
        ("/dev/hugepages/ram", False),
        ("/dev/zero (deleted)", False),
        ("/dev/dax0.0", False),
        ("/device/ram", False),
    ],
)
def test_devices_are_told_from_memory_by_their_path(name, answer):
    mapping = next(m for m in read_maps(os.getpid()) if m.writable)
    assert is_device(type(mapping)(**{**vars(mapping), "name": name})) is answer
