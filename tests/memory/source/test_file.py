import os
import socket

import pytest

from pysampler.errors import SourceError
from pysampler.memory.source import file_block, process_fd_block


def test_a_file_becomes_a_block_of_its_whole_pages(tmp_path):
    path = tmp_path / "guest.ram"
    path.write_bytes(bytes(3 * 4096 + 17))
    block = file_block(path)
    assert (block.idstr, block.used_length, block.page_size) == ("guest.ram", 3 * 4096, 4096)


def make(kind, path):
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(path))
    elif kind == "empty":
        path.touch()
    elif kind == "short":
        path.write_bytes(bytes(4095))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("directory", "is a directory, not a file of guest memory"),
        ("fifo", "is a FIFO, not a file"),
        ("socket", "is a socket, not a file"),
        ("empty", "is empty"),
        ("short", "has 4095 bytes, less than a page"),
        ("missing", "No such file or directory"),
    ],
)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_what_is_no_guest_memory_is_refused_by_name(tmp_path, kind, message):
    path = tmp_path / "x"
    make(kind, path)
    with pytest.raises(SourceError, match=f"{path}: {message}"):
        file_block(path)


def test_a_device_is_refused():
    with pytest.raises(SourceError, match="/dev/zero: is a device"):
        file_block("/dev/zero")


def test_a_descriptor_that_is_not_there_is_named():
    with pytest.raises(SourceError, match=f"process {os.getpid()} has no descriptor 9999"):
        process_fd_block(os.getpid(), 9999)


def test_a_pid_that_is_not_there_is_named():
    with pytest.raises(SourceError, match="no process has the pid 4194304"):
        process_fd_block(4194304, 0)


def test_a_memfd_has_its_own_name(memfd):
    fd, _ = memfd(1 << 20, "pc.ram")
    assert process_fd_block(os.getpid(), fd).idstr == "pc.ram"
