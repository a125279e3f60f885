"""The sockets of a migration: two ends find each other, and nobody waits for ever."""

import errno
import os
import socket
import stat
import struct
import threading
import time

import pytest

from pysampler.errors import SourceError
from pysampler.migration.address import TcpAddress, UnixAddress
from pysampler.migration.channel import connect, listen

NOT_STOPPED = threading.Event()


@pytest.fixture(params=["unix", "tcp"])
def address(request, tmp_path):
    return UnixAddress(f"{tmp_path}/s") if request.param == "unix" else TcpAddress("localhost", 0)


def test_two_ends_find_each_other_and_block(address):
    listener = listen(address)
    with connect(listener.address, NOT_STOPPED) as source, listener.accept() as destination:
        source.sendall(b"x")
        assert destination.recv(1) == b"x"
        assert source.getblocking()
        assert destination.getblocking()
    listener.close()
    listener.close()
    assert listener.accept() is None


def test_the_real_port_is_told():
    listener = listen(TcpAddress("127.0.0.1", 0))
    assert listener.address.port > 0
    listener.close()


def test_a_unix_socket_is_its_users_alone_and_gone_after_close(tmp_path):
    path = f"{tmp_path}/s"
    listener = listen(UnixAddress(path))
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
    listener.close()
    assert not os.path.exists(path)


def test_closing_by_another_thread_ends_an_accept(address):
    listener = listen(address)
    accepted = []
    waiting = threading.Thread(target=lambda: accepted.append(listener.accept()))
    waiting.start()
    time.sleep(0.05)
    listener.close()
    waiting.join()
    assert accepted == [None]


def test_nobody_there_has_qemus_text(tmp_path):
    with pytest.raises(SourceError) as caught:
        connect(UnixAddress(f"{tmp_path}/s"), NOT_STOPPED)
    expected = f"Failed to connect to '{tmp_path}/s': No such file or directory"
    assert str(caught.value) == expected
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SourceError) as caught:
        connect(TcpAddress("127.0.0.1", port), NOT_STOPPED)
    assert str(caught.value) == f"Failed to connect to '127.0.0.1:{port}': Connection refused"


def test_a_folder_that_is_not_there_has_qemus_text():
    with pytest.raises(SourceError) as caught:
        listen(UnixAddress("/no-such-dir/x"))
    message = "Failed to bind socket to /no-such-dir/x: No such file or directory"
    assert str(caught.value) == message


def test_an_address_in_use_is_refused(address):
    listener = listen(address)
    with pytest.raises(SourceError, match=r"^Failed to bind socket to "):
        listen(listener.address)
    listener.close()


@pytest.fixture
def full_queue(tmp_path):
    """A unix listener that accepts nobody, with its queue full."""
    path, ends = f"{tmp_path}/s", []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        while True:
            ends.append(socket.socket(socket.AF_UNIX))
            ends[-1].setblocking(False)
            if ends[-1].connect_ex(path) == errno.EAGAIN:
                break
        yield UnixAddress(path)
    for end in ends:
        end.close()


def test_a_destination_that_does_not_accept_is_given_up(full_queue):
    with pytest.raises(SourceError, match=r"^Failed to connect to '.*': Connection timed out$"):
        connect(full_queue, NOT_STOPPED, limit_s=0.1)


def test_a_stop_ends_the_connecting(full_queue):
    stop = threading.Event()
    timer = threading.Timer(0.1, stop.set)
    timer.start()
    with pytest.raises(SourceError, match=r"^Failed to connect to '.*': Operation canceled$"):
        connect(full_queue, stop)
    timer.join()


def test_another_users_process_gets_no_ram(tmp_path, monkeypatch):
    listener = listen(UnixAddress(f"{tmp_path}/s"))
    credentials = struct.pack("3i", 1, 4711, 4711)
    monkeypatch.setattr(socket.socket, "getsockopt", lambda *_: credentials)
    with pytest.raises(SourceError, match=r"a process of another user \(uid 4711\) listens there"):
        connect(listener.address, NOT_STOPPED)
    listener.close()
