"""The QMP client: no event is lost, and what a server may say is bounded."""

import os
import socket

import pytest
from fake_source import fake_source

from pysampler.errors import SourceError
from pysampler.host.qmp_client import QmpClient, QmpError

TIMEOUT_S = 20


@pytest.fixture
def source(tmp_path):
    with fake_source(tmp_path) as source:
        yield source


def event(name):
    return b'{"event": "%s", "timestamp": {}}\r\n' % name.encode()


def names(events):
    return [event["event"] for event in events]


def test_events_before_a_reply_are_kept_in_order(source):
    source.replies["a"] = event("ONE") + event("TWO") + b'{"return": 1}\r\n' + event("THREE")
    with QmpClient(source.address, TIMEOUT_S) as client:
        assert client.execute("a") == 1
        assert names(client.pause(TIMEOUT_S)) == ["ONE", "TWO"]
        assert names(client.pause(TIMEOUT_S)) == ["THREE"]
        assert client.pause(0.01) == []


def test_a_reply_that_comes_too_late_is_not_taken_for_the_next_one(source):
    source.replies |= {
        "slow": None,
        "next": b'{"return": "late", "id": 2}\n{"return": 3, "id": 3}\n',
    }
    with QmpClient(source.address, 0.5) as client:
        with pytest.raises(SourceError, match=r"no answer within 0\.5 s"):
            client.execute("slow")
        assert client.execute("next") == 3


def test_a_refusal_has_the_servers_words(source):
    with (
        QmpClient(source.address, TIMEOUT_S) as client,
        pytest.raises(QmpError, match=r"^The command nothing has not been found$"),
    ):
        client.execute("nothing")


@pytest.mark.parametrize("error", [b"7", b"{}", b'{"desc": 5}'])
def test_a_refusal_without_words_is_one_still(source, error):
    source.replies["a"] = b'{"error": %s}\n' % error
    with (
        QmpClient(source.address, TIMEOUT_S) as client,
        pytest.raises(QmpError, match="refused without a reason"),
    ):
        client.execute("a")


def test_a_flood_while_nothing_was_asked_is_bounded(source):
    source.replies["a"] = b'{"return": 0}\n' + b"[1]\n" + b" " * (9 << 20)
    with QmpClient(source.address, TIMEOUT_S) as client:
        assert client.execute("a") == 0
        with pytest.raises(SourceError, match="does not answer with JSON objects"):
            client.pause(TIMEOUT_S)
        with pytest.raises(SourceError, match="it says too much"):
            client.pause(TIMEOUT_S)


def test_who_listens_at_a_unix_socket_is_known_and_at_a_port_is_not(source, tmp_path):
    with QmpClient(source.address, TIMEOUT_S) as client:
        assert client.peer_pid() == os.getpid()
    with (
        fake_source(tmp_path, socket.AF_INET) as other,
        QmpClient(other.address, TIMEOUT_S) as client,
    ):
        assert client.peer_pid() is None


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:99999", "tcp:127.0.0.1:1", "unix:", "a\0b"])
def test_an_address_where_nobody_can_be_is_one_line(address):
    with pytest.raises(SourceError, match="QMP socket "):
        QmpClient(address, TIMEOUT_S)
