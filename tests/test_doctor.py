"""What `doctor` finds where things do not work."""

import json
import os
import subprocess
import sys

import pytest

from pysampler import doctor


def findings():
    return {finding.name: finding for finding in doctor.examine()}


def test_holes_that_were_left_alone_are_told_with_what_was_seen():
    detail = findings()["memfd of another process"].detail
    assert detail.endswith("1 pages read, holes left alone (4 KiB allocated before and after)")


def test_holes_that_were_filled_are_found(monkeypatch):
    open_reader = doctor.open_reader

    def fill(block, page_size):
        path = getattr(block.memory, "path", None)
        if path is not None:
            with open(path, "r+b") as file:
                file.seek(4096)
                file.write(b"f" * 4096)
        return open_reader(block, page_size)

    monkeypatch.setattr(doctor, "open_reader", fill)
    finding = findings()["memfd of another process"]
    assert not finding.works
    assert finding.detail == "reading filled holes, 4 KiB became 8 KiB"


@pytest.mark.parametrize(
    ("python", "why"),
    [("/nonexistent", "No such file or directory"), ("/bin/false", "ended at once")],
)
def test_a_python_that_may_not_be_run_is_a_finding(monkeypatch, python, why):
    monkeypatch.setattr(sys, "executable", python)
    found = findings()
    assert not found["memory of another process"].works
    assert found["memory of another process"].detail.endswith(why)
    assert found["hash XXH64"].works


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_may_do_nothing_gets_a_report():
    # The first examination loads what nobody might not be allowed to load.
    code = (
        "import contextlib, encodings.ascii, io, os, sys; from pysampler.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['doctor', '--json'])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "sys.exit(main(['doctor', '--json']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert not found["processes of other users"]["works"]
    assert found["hash XXH64"]["works"]
