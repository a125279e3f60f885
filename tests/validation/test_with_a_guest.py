"""The whole experiment, small, with a real guest; nothing here depends on how fast it runs."""

import json

import pytest

from pysampler.cli import main
from pysampler.errors import SourceError
from pysampler.validation.watched_guest import WatchedGuest


@pytest.mark.parametrize("workload", ["uniform", "hotcold", "zipf", "sweep"])
def test_the_guest_knows_as_many_pages_as_theory_expects(workload, capsys, tmp_path):
    arguments = ["--sizes", "64M", "--calc-times", "50ms,150ms", "--wps", "60000", "--seed", "3"]
    store = ["--store", str(tmp_path / "store.sqlite")]
    assert main(["validate", "--workload", workload, "--json", *arguments, *store]) == 0
    printed = capsys.readouterr()
    rows = [json.loads(line) for line in printed.out.splitlines()]
    assert {row["method"] for row in rows} >= {"qemu", "fast"}
    assert all(row["writes"] > 0 and row["n-dirty-pages"] > 0 for row in rows)
    for row in rows:
        # Counters are read just around the look at the truth: within 10 % on any machine.
        assert row["truth-mib-s"] == pytest.approx(row["theory-mib-s"], rel=0.1)


def test_a_guest_that_cannot_start_says_why():
    with pytest.raises(SourceError, match="no-such-workload"):
        WatchedGuest(64 << 20, "no-such-workload", 1)
