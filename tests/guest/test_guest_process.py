import os

import pytest

from pysampler.errors import SourceError
from pysampler.guest.process import GuestProcess


def test_a_guest_of_several_vcpus_counts_all_their_writes_and_ends_with_the_block():
    words = ("--memory=8M", "--vcpus=2", "--workload=0=idle", "--workload=1=sweep:wps=max")
    with GuestProcess(*words) as guest:
        assert [vcpu["index"] for vcpu in guest.ready["vcpus"]] == [0, 1]
        before = guest.writes()
        while guest.writes() == before:
            pass
        assert os.path.exists(f"/proc/{guest.pid}")
    assert not os.path.exists(f"/proc/{guest.pid}")


def test_a_guest_that_does_not_start_says_why_in_its_own_words():
    with pytest.raises(SourceError, match=r"^pysampler guest: --vcpus: 0 is not from 1 to 255$"):
        GuestProcess("--vcpus=0")
