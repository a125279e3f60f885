import os
import signal

import pytest
from subject import subject

from pysampler.errors import FaultError, SourceError, UsageError
from pysampler.host.maps import is_mapped, read_maps
from pysampler.memory.ramblock import FileMemory, ProcessMemory
from pysampler.memory.reader.address_space import AddressSpace
from pysampler.memory.source import find_blocks, named_block

BOTH = """
private = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE)
private[:] = b"p" * LENGTH
fd = os.memfd_create("NAME")
os.ftruncate(fd, LENGTH)
shared = mmap.mmap(fd, LENGTH)
shared[:] = b"s" * LENGTH
"""


def test_every_large_writable_mapping_of_a_process_is_found():
    with subject(BOTH.replace("NAME", "cache")) as process:
        private = int(process("answer = address_of(private)"))
        blocks = {block.idstr: block for block in find_blocks(process.pid)}
        assert {f"anon@{private:x}", "cache"} == set(blocks)
        assert isinstance(blocks["cache"].memory, FileMemory)
        assert blocks[f"anon@{private:x}"].memory == ProcessMemory(
            process.pid, private, anonymous=True
        )


def test_memfds_named_as_qemus_are_all_there_is():
    with subject(BOTH.replace("NAME", "memory-backend-memfd:pc.ram")) as process:
        assert [block.idstr for block in find_blocks(process.pid)] == ["pc.ram"]


def test_a_memfd_whose_descriptor_is_closed_is_still_mapped():
    with subject(BOTH.replace("NAME", "memory-backend-memfd")) as process:
        # Python's own mmap keeps a descriptor.
        process("libc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p")
        process("libc.mmap(None, ctypes.c_size_t(LENGTH), 3, 1, fd, ctypes.c_long(0))")
        process("shared.close()\nos.close(fd)")
        (block,) = find_blocks(process.pid)
        assert isinstance(block.memory, FileMemory)
        assert "/map_files/" in block.memory.path


def test_a_memfd_that_is_mapped_twice_is_one_block():
    with subject(BOTH.replace("NAME", "memory-backend-memfd")) as process:
        process("again = mmap.mmap(fd, LENGTH)")
        assert len(find_blocks(process.pid)) == 1


def test_two_blocks_of_one_name_are_told_apart():
    with subject(BOTH.replace("NAME", "memory-backend-memfd")) as process:
        process("b = os.memfd_create('memory-backend-memfd')\nos.ftruncate(b, LENGTH)")
        process("other = mmap.mmap(b, LENGTH)")
        names = [block.idstr for block in find_blocks(process.pid)]
        assert names == ["memory-backend-memfd#1", "memory-backend-memfd#2"]


def test_a_process_without_guest_ram_is_refused_with_the_way_out():
    with (
        subject("") as process,
        pytest.raises(SourceError, match=r"no guest RAM to find.*--block"),
    ):
        find_blocks(process.pid)


def test_a_kernel_thread_has_no_memory():
    with pytest.raises(SourceError, match="no guest RAM to find: a kernel thread"):
        find_blocks(2)


@pytest.mark.parametrize("pid", [4194304, 2**31])
def test_a_pid_that_is_not_there_is_named(pid):
    with pytest.raises(SourceError, match=f"no process has the pid {pid}"):
        find_blocks(pid)


def test_a_named_part_of_a_memfd_is_read_from_its_file():
    with subject(BOTH.replace("NAME", "cache")) as process:
        address = int(process("answer = address_of(shared)"))
        block = named_block(process.pid, f"ram={address + 8192:#x}:1M")
        assert isinstance(block.memory, FileMemory)
        assert (block.used_length, block.memory.offset) == (1 << 20, 8192)


def test_a_named_block_past_the_end_of_its_mapping_is_refused():
    with subject(BOTH.replace("NAME", "cache")) as process:
        address = int(process("answer = address_of(private)"))
        end = next(m.end for m in read_maps(process.pid) if m.start <= address < m.end)
        text = f"ram={address:#x}:{end - address + 4096}"
        # What follows may be mapped as well; then the refusal must come from its end.
        while is_mapped(read_maps(process.pid), address, end - address + 4096):
            end += 4096
            text = f"ram={address:#x}:{end - address + 4096}"
        with pytest.raises(SourceError, match=r"block ram: ends at .* past the end of its mapping"):
            named_block(process.pid, text)


def test_a_named_block_that_is_not_mapped_is_refused():
    with pytest.raises(SourceError, match="has nothing mapped at 0x1000"):
        named_block(os.getpid(), "ram=0x1000:1M")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ram", "is not NAME=ADDR:LENGTH"),
        ("=0x1000:1M", "is not NAME=ADDR:LENGTH"),
        ("ram=zz:1M", "is not NAME=ADDR:LENGTH"),
        ("ram=0x1000:", "is not NAME=ADDR:LENGTH"),
        ("ram=0x1000:much", "block ram: 'much' is not a size"),
        ("ram=0x1001:1M", "address and length must be multiples of 4096"),
        ("ram=0x1000:64K", "a RAMBlock has at least 128 KiB"),
        ("ram=0x1000:999999999999999999999", "more memory than there is"),
    ],
)
def test_a_wrong_block_is_refused_by_its_text(text, message):
    with pytest.raises(UsageError, match=message):
        named_block(os.getpid(), text)


def test_a_process_that_ends_between_two_looks_has_ended(monkeypatch):
    def killed_meanwhile(pid):
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return read_maps(pid)  # a zombie's: none

    with subject(BOTH.replace("NAME", "cache")) as process:
        blocks = find_blocks(process.pid)
        (block,) = (b for b in blocks if isinstance(b.memory, ProcessMemory))
        space = AddressSpace(block, block.memory)
        monkeypatch.setattr("pysampler.memory.reader.address_space.read_maps", killed_meanwhile)
        with pytest.raises(FaultError, match="the process has ended"):
            space.check_mapped()
        space.close()
