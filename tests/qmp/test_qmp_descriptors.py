"""A server without descriptors says so once, does not spin, and serves again when there are some."""

import os
import resource
import threading
import time
from contextlib import ExitStack

import pytest
from qmp_fakes import Client, FakeGuest, FakeMeasure, FakeMigration

from pysampler.qmp.address import listen
from pysampler.qmp.server import QmpServer

STATUS = '{"execute": "query-status"}'


@pytest.fixture
def scarce():
    """Take all descriptors but ``left``; yield the stack whose `close` gives them back."""
    with ExitStack() as taken:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def take(left):
            highest = max(map(int, os.listdir("/proc/self/fd")))
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
            fds = []
            try:
                while True:
                    fds.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass
            for fd in fds[:left]:
                os.close(fd)
            for fd in fds[left:]:
                taken.callback(os.close, fd)
            return taken

        yield take


def test_a_client_that_cannot_be_accepted_waits_for_its_turn(tmp_path, scarce):
    warnings = []
    server = QmpServer(
        FakeGuest(),
        FakeMeasure(),
        FakeMigration(),
        listen(f"unix:{tmp_path / 'q'}"),
        warnings.append,
    )
    server.start()
    try:
        with Client(server.address) as first:
            first.negotiate()
            taken = scarce(left=1)  # for the client's end
            with Client(server.address) as second:
                before = time.process_time()
                time.sleep(1)
                # A loop that spins takes all of the second.
                assert time.process_time() - before < 0.5
                assert first.ask(STATUS).startswith('{"return": ')
                taken.close()
                second.negotiate()
        assert len(warnings) == 1
        assert "ulimit -n" in warnings[0]
    finally:
        server.close()
    assert "qmp" not in [thread.name for thread in threading.enumerate()]


def test_a_server_that_waits_for_descriptors_ends_all_the_same(tmp_path, scarce):
    server = QmpServer(
        FakeGuest(), FakeMeasure(), FakeMigration(), listen(f"unix:{tmp_path / 'q'}")
    )
    server.start()
    taken = scarce(left=1)
    client = Client(server.address)
    time.sleep(0.1)
    server.close()
    client.close()
    taken.close()
    assert "qmp" not in [thread.name for thread in threading.enumerate()]
