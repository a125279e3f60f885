"""What no vector holds of a host, each migration is told by the others of its file."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from known_guests import GIB_PAGES, guest_of, uniform

from pysampler import Measurement, Precopy
from pysampler.prediction.curve import DirtyCurve
from pysampler.prediction.host import set_up
from pysampler.prediction.precopy_model import migrate
from pysampler.prediction.records import Migration, read_migrations

GOLDEN = Path(__file__).parents[1] / "golden"
VECTOR = Measurement.from_json((GOLDEN / "vector-32gib-memcached.json").read_text())


def migrated(zero_page_us, nonzero, rate, *, link=2e9, known=True):
    """A migration as a host with this time for a zero page would have it."""
    curve = DirtyCurve((uniform(0.1, 2),), None, (), (), nonzero, 2 * GIB_PAGES, 0.0, 1)
    precopy = Precopy(link=link, zero_page_us=zero_page_us)
    (outcome,) = migrate(guest_of(curve), precopy, [(rate, 300.0)])[0]
    return Migration(
        line=1,
        bandwidth=rate,
        downtime_limit_ms=300.0,
        limit_ms=60_000.0,
        converged=bool(outcome["converged"]),
        total_ms=float(outcome["total_ms"]),
        link=link,
        multifd=False,
        vectors={"vector": VECTOR},
        title="",
        guest=curve if known else None,
    )


@pytest.mark.parametrize("us", [0.12, 0.45, 3.6])
def test_a_zero_page_takes_what_the_others_took(us):
    others = [migrated(us, GIB_PAGES * share, 3e8 / share) for share in (0.2, 0.35, 0.5, 0.9, 1)]
    told = list(set_up([*others, migrated(9.0, GIB_PAGES, 3e8)], Precopy()))[-1]
    assert told.zero_page_us == pytest.approx(us, rel=0.15)


def test_one_that_is_predicted_not_to_end_does_not_decide():
    others = [migrated(0.45, GIB_PAGES * share, 3e8 / share) for share in (0.2, 0.5, 0.9)]
    odd = replace(others[0], bandwidth=1e6, limit_ms=1e4)  # which it is said to have made
    told = list(set_up([*others, odd, others[1]], Precopy()))[-1]
    assert told.zero_page_us == pytest.approx(0.45, rel=0.15)


def test_the_link_is_the_median_of_the_others():
    files = [migrated(0.0, GIB_PAGES, 3e8, link=link) for link in (1e9, 2e9, 7e9)]
    files.append(replace(files[0], link=None))  # its last pass was too short to tell
    assert [precopy.link for precopy in set_up(files, Precopy())] == [4.5e9, 4e9, 1.5e9, 2e9]


def test_where_nothing_is_known_of_the_others_nothing_is_made_up():
    unknown = migrated(1.0, GIB_PAGES, 3e8, link=None, known=False)
    stuck = replace(migrated(1.0, GIB_PAGES, 3e8, link=None), converged=False, total_ms=math.inf)
    for found in (
        list(set_up([migrated(1.0, GIB_PAGES, 3e8)], Precopy())),
        list(set_up([unknown, stuck, unknown], Precopy())),
    ):
        assert {(precopy.link, precopy.zero_page_us) for precopy in found} == {(None, 0.0)}


def test_what_is_said_is_not_looked_for():
    files = [migrated(1.0, GIB_PAGES, 3e8) for _ in range(3)]
    given = Precopy(link=5e9, zero_page_us=0.0)
    assert list(set_up(files, given)) == [replace(given, deadline_ms=60_000.0)] * 3


def test_the_host_of_the_given_migrations_took_under_half_a_microsecond():
    """Between the other kinds of memory in docs/prediction.md, whatever migration is left out."""
    for name in ("qemu10", "recorded"):
        lines = (GOLDEN / f"migrations-{name}.jsonl").read_bytes().splitlines()
        told = [precopy.zero_page_us for precopy in set_up(read_migrations(lines), Precopy())]
        assert 0.3 < np.min(told) <= np.max(told) < 0.5


def test_each_has_its_own_deadline_and_channels():
    records = [
        json.loads(line)
        for name in ("qemu10", "multifd")
        for line in (GOLDEN / f"migrations-{name}.jsonl").read_text().splitlines()[:1]
    ]
    records[0]["config"]["limit-s"] = 7
    found = list(set_up(read_migrations([json.dumps(r).encode() for r in records]), Precopy()))
    assert [(precopy.deadline_ms, precopy.multifd) for precopy in found] == [
        (7000, False),
        (60_000, True),
    ]
    both = set_up(read_migrations([json.dumps(r).encode() for r in records]), Precopy(multifd=True))
    assert [precopy.multifd for precopy in both] == [True, True]
