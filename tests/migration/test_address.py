"""URIs of migrate and migrate-incoming: what they mean, and QEMU's texts for what they do not."""

import pytest

from pysampler.errors import UsageError
from pysampler.migration.address import TcpAddress, UnixAddress, parse_uri


@pytest.mark.parametrize(
    ("uri", "address", "json"),
    [
        ("unix:SOCK.dst", UnixAddress("SOCK.dst"), {"path": "SOCK.dst", "type": "unix"}),
        ("unix:/a,b:c", UnixAddress("/a,b:c"), {"path": "/a,b:c", "type": "unix"}),
        (
            "tcp:127.0.0.1:4444",
            TcpAddress("127.0.0.1", 4444),
            {"port": "4444", "ipv4": True, "host": "127.0.0.1", "type": "inet"},
        ),
        (
            "tcp:localhost:0",
            TcpAddress("localhost", 0),
            {"port": "0", "ipv4": True, "host": "localhost", "type": "inet"},
        ),
        (
            "tcp:[::1]:5",
            TcpAddress("::1", 5),
            {"port": "5", "ipv6": True, "host": "::1", "type": "inet"},
        ),
    ],
)
def test_a_uri_and_what_query_migrate_shows_of_it(uri, address, json):
    parsed = parse_uri(uri)
    assert parsed == address
    assert list(parsed.to_json().items()) == list(json.items())


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "unknown migration protocol: "),
        ("nonsense", "unknown migration protocol: nonsense"),
        ("foo:", "unknown migration protocol: foo:"),
        ("foo:bar", "unknown migration protocol: foo:bar"),
        ("unix", "unknown migration protocol: unix"),
        ("tcp", "unknown migration protocol: tcp"),
        ("fd", "unknown migration protocol: fd"),
        ("unix:", "invalid Unix socket address"),
        ("tcp:127.0.0.1", "error parsing address '127.0.0.1'"),
        ("tcp:", "error parsing address ''"),
        ("tcp:127.0.0.1:", "error parsing address '127.0.0.1:'"),
        ("tcp:[::1:5", "error parsing address '[::1:5'"),
    ],
)
def test_what_is_no_address_gets_qemus_text(uri, message):
    with pytest.raises(UsageError) as caught:
        parse_uri(uri)
    assert str(caught.value) == message


@pytest.mark.parametrize("scheme", ["exec", "rdma", "vsock", "fd", "file"])
def test_what_qemu_has_and_the_guest_has_not_is_refused_by_name(scheme):
    with pytest.raises(UsageError, match=f"has no migration over {scheme}:; use unix:PATH or"):
        parse_uri(f"{scheme}:something")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("unix:" + "x" * 108, "a path has at most 107 bytes"),
        ("unix:a\0b", "a path has at most 107 bytes"),
        ("tcp:127.0.0.1:65536", "a port is a number from 0 to 65535"),
        ("tcp:127.0.0.1:http", "a port is a number from 0 to 65535"),
        ("tcp:127.0.0.1:-1", "a port is a number from 0 to 65535"),
        ("tcp:127.0.0.1:1,to=5", "knows no options of an address"),
        ("tcp:192.0.2.1:1", "loopback interface only; write tcp:127.0.0.1:PORT"),
        ("tcp::1", "loopback interface only; write tcp:127.0.0.1:PORT"),
        ("tcp:example.org:1", "loopback interface only; write tcp:127.0.0.1:PORT"),
    ],
)
def test_what_cannot_be_used_gets_one_line_with_the_cure(uri, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_uri(uri)
    assert "\n" not in str(caught.value)
