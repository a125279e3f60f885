"""A vCPU that cannot go on ends the guest with a message, and never silently."""

import pytest

from pysampler.cli import main
from pysampler.errors import PysamplerError
from pysampler.guest import vcpu


def test_a_vcpu_that_fails_is_told_and_asks_for_the_end(make_guest, monkeypatch):
    def fail(*_):
        raise OverflowError("int too big to convert")

    guest = make_guest("uniform", "uniform", vcpus=2)
    monkeypatch.setattr(vcpu, "work", fail)
    guest.cont()
    assert guest.shutdown_requested.wait(20)
    guest.stop()  # waits for nobody who is gone
    with pytest.raises(PysamplerError, match=r"vCPU \d ended: OverflowError: int too big"):
        guest.check()


def test_a_guest_whose_vcpus_are_well_is_well(make_guest):
    guest = make_guest("uniform")
    guest.cont()
    guest.stop()
    guest.check()


def test_pysampler_guest_ends_with_one_line(monkeypatch, capsys):
    whole, calls = vcpu.work, []

    def fail_later(*arguments):
        calls.append(arguments)
        if len(calls) > 1:  # the first is the check before the start
            raise OverflowError("int too big to convert")
        return whole(*arguments)

    monkeypatch.setattr(vcpu, "work", fail_later)
    monkeypatch.setattr("pysampler.guest.guest.work", fail_later)
    assert main(["guest", "--memory", "2M", "--workload", "uniform"]) == 1
    assert capsys.readouterr().err == (
        "pysampler guest: vCPU 0 ended: OverflowError: int too big to convert\n"
    )
