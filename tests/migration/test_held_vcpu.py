"""A vCPU that is held in a write cannot be stopped for a switchover: the guest goes on here."""

import os
import select

import pytest
from pair import Pair, make_guest

from pysampler import core
from pysampler.core import Range, UffdKind
from pysampler.errors import MissingFeatureError
from pysampler.guest import guest as guest_module
from pysampler.guest.run_state import RunState
from pysampler.tracking.userfaultfd import open_userfaultfd


def test_the_guest_runs_again_as_soon_as_its_vcpu_is_let_go(tmp_path, monkeypatch):
    monkeypatch.setattr(guest_module, "STOP_LIMIT_S", 0.2)
    try:
        uffd = open_userfaultfd(UffdKind.MESSAGES)
    except MissingFeatureError as error:
        pytest.skip(str(error))
    pair = Pair(tmp_path, make_guest("sweep:wps=max"), make_guest("sweep", incoming=True))
    try:
        guest = pair.source.guest
        block = guest.blocks[0]
        memory = Range(block.address, block.length, first_bit=0)
        core.uffd_register(uffd, memory)
        core.uffd_protect(uffd, memory)
        guest.cont()
        assert select.select([uffd], [], [], 60)[0]  # the write waits
        pair.migrate()
        pair.source.wait_for(("STOP",))
        info = pair.source.wait_until_ended()
        assert info.status == "failed"
        assert "vCPU 0 has not stopped" in info.error_desc
        assert guest.state is RunState.FINISH_MIGRATE
        core.uffd_unregister(uffd, memory)
        pair.source.wait_for(("RESUME",))
        assert guest.running
        assert pair.destination.wait_until_ended().status == "failed"
    finally:
        os.close(uffd)
        pair.close()
