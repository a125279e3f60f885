import pytest
from qmp_fakes import Client, FakeGuest, FakeMeasure, FakeMigration, serving


@pytest.fixture
def guest():
    return FakeGuest()


@pytest.fixture
def measure():
    return FakeMeasure()


@pytest.fixture
def migration():
    return FakeMigration()


@pytest.fixture
def server(tmp_path, guest, measure, migration):
    with serving(f"unix:{tmp_path}/qmp.sock", guest, measure, migration) as server:
        yield server


@pytest.fixture
def client(server):
    """A client that has negotiated, out-of-band commands included."""
    request = '{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
    with Client(server.address) as client:
        yield client.negotiate(request)
