import os
import socket
import stat
from contextlib import closing

import pytest
from qmp_fakes import Client, FakeGuest, FakeMeasure, FakeMigration, serving

from pysampler.errors import SourceError, UsageError
from pysampler.qmp.address import listen
from pysampler.qmp.server import QmpServer


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_a_unix_socket_is_its_users_alone_from_its_first_moment(tmp_path, monkeypatch):
    modes = []
    bind = socket.socket.bind

    def watched(self, path):
        bind(self, path)
        modes.append(mode(path))

    monkeypatch.setattr(socket.socket, "bind", watched)
    before = os.umask(0)
    try:
        listen(f"unix:{tmp_path}/s").close()
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_the_socket_is_gone_after_close(tmp_path):
    path = tmp_path / "s"
    with serving(f"unix:{path}") as server:
        assert server.address == f"unix:{path}"
        Client(server.address).close()
    assert not path.exists()


def test_closing_twice_or_unstarted_does_nothing(tmp_path):
    with closing(listen(f"unix:{tmp_path}/s")) as listener:
        QmpServer(FakeGuest(), FakeMeasure(), FakeMigration(), listener).close()
    with serving(f"unix:{tmp_path}/s") as server:
        server.close()
        server.shutdown("host-signal")


def test_the_socket_of_a_dead_server_is_replaced(tmp_path):
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with serving(f"unix:{path}") as server, Client(server.address) as client:
        client.negotiate()


def test_the_socket_of_a_live_server_is_refused_and_left_alone(tmp_path):
    address = f"unix:{tmp_path}/s"
    with serving(address) as server:
        with pytest.raises(SourceError, match="a running process serves it"):
            listen(address)
        with Client(server.address) as client:
            client.negotiate()


def test_a_file_that_is_no_socket_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(SourceError, match="is not a socket"):
        listen(f"unix:{path}")
    assert path.read_text() == "precious"


def test_a_socket_that_another_has_put_in_its_place_is_not_removed(tmp_path):
    path = tmp_path / "s"
    listener = listen(f"unix:{path}")
    path.rename(tmp_path / "moved")
    path.write_text("of somebody else")
    listener.close()
    assert path.read_text() == "of somebody else"


@pytest.mark.parametrize(
    "address", ["tcp:127.0.0.1:0", "tcp:localhost:0", "tcp:127.9.9.9:0", "tcp:[::1]:0"]
)
def test_loopback_tcp_is_served_at_the_real_port(address):
    if "::1" in address:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6 loopback here: {error}")
    with serving(address) as server:
        assert not server.address.endswith(":0")
        with Client(server.address) as client:
            client.negotiate()
            with pytest.raises(SourceError, match="in use"):
                listen(server.address)


@pytest.mark.parametrize(
    "address",
    [
        "tcp:0.0.0.0:4444",
        "tcp:[::]:4444",
        "tcp:192.0.2.1:4444",
        "tcp:example.org:4444",
        "tcp::4444",
    ],
)
def test_nothing_but_loopback_is_served(address):
    with pytest.raises(UsageError, match=r"^QMP address .*only loopback.*tcp:127\.0\.0\.1:PORT$"):
        listen(address)


@pytest.mark.parametrize(
    "address",
    [
        "", "guest.sock", "unix:", "unix:" + "x" * 108, "unix:a\0b", "vsock:1:2", "tcp:127.0.0.1",
        "tcp:127.0.0.1:-1", "tcp:127.0.0.1:65536", "tcp:127.0.0.1:123456", "tcp:[127.0.0.1:1",
    ],
)  # fmt: skip
def test_an_address_that_is_none_gets_one_line(address):
    with pytest.raises(UsageError) as caught:
        listen(address)
    assert str(caught.value).startswith("QMP address ")
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there_gets_one_line(tmp_path):
    with pytest.raises(SourceError, match="No such file or directory"):
        listen(f"unix:{tmp_path}/nowhere/s")
