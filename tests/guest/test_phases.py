import json
import sys

import pytest

from pysampler.errors import FormatError, MissingFeatureError, UsageError
from pysampler.guest import Phases
from pysampler.guest.phases import FOREVER_NS, assign

S = 1_000_000_000
TWO = [{"for": "2s", "workload": "sweep"}, {"for": "500ms", "workload": ["idle", "1=uniform"]}]


@pytest.fixture
def schedule(tmp_path):
    def write(document, name="phases.json", n_vcpus=2):
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return Phases.from_file(str(path), n_vcpus)

    return write


def seen(phases, *times_s):
    found = [phases.at(round(t * S)) for t in times_s]
    return [(p.number, p.start_ns / S, [w.text for w in p.workloads]) for p in found]


def test_phases_follow_each_other_and_all_ends_idle(schedule):
    assert seen(schedule({"phases": TWO}), 0, 1.999, 2, 2.6, 1000) == [
        (0, 0, ["sweep", "sweep"]),
        (0, 0, ["sweep", "sweep"]),
        (1, 2, ["idle", "uniform"]),
        (2, 2.5, ["idle", "idle"]),
        (2, 2.5, ["idle", "idle"]),
    ]


def test_repeated_phases_count_on(schedule):
    phases = schedule({"phases": TWO, "repeat": True})
    assert [(n, start) for n, start, _ in seen(phases, 0, 2, 2.5, 4.5, 25)] == [
        (0, 0), (1, 2), (2, 2.5), (3, 4.5), (20, 25),
    ]  # fmt: skip


@pytest.mark.parametrize("repeat", [False, True])
def test_a_phase_is_found_by_its_number(schedule, repeat):
    phases = schedule({"phases": TWO, "repeat": repeat})
    for t in (0, 2, 2.5, 4.5, 25):
        phase = phases.at(round(t * S))
        assert phases.workloads_of(phase.number) == phase.workloads


def test_a_last_phase_without_an_end_lasts(schedule):
    phases = schedule({"phases": [TWO[0], {"workload": "sweep"}]})
    assert phases.at(10**15).end_ns == FOREVER_NS


def test_toml_says_the_same(schedule):
    text = (
        '[[phases]]\nfor = "2s"\nworkload = "sweep"\n[[phases]]\nworkload = ["idle", "1=sweep"]\n'
    )
    if sys.version_info < (3, 11):
        with pytest.raises(MissingFeatureError, match="JSON"):
            schedule(text, "phases.toml")
        return
    document = {"phases": [TWO[0], {"workload": ["idle", "1=sweep"]}]}
    assert schedule(text, "phases.toml") == schedule(document)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "phases.json: "),
        ("[" * 100_000, "phases.json: "),
        ([], "not an object"),
        ({}, "phases: not an array"),
        ({"phases": []}, "phases: not an array"),
        ({"phases": TWO, "speed": 1}, "speed: unknown"),
        ({"phases": TWO, "repeat": 1}, "repeat: not true or false"),
        ({"phases": [{"workload": "idle"}, TWO[0]]}, r"phases\[0\].for: missing"),
        ({"phases": [{"workload": "idle"}], "repeat": True}, r"phases\[0\].for: missing"),
        ({"phases": [{"for": 5, "workload": "idle"}]}, r"phases\[0\].for: not a text"),
        ({"phases": [{"for": "5s"}]}, r"phases\[0\].workload: not a text"),
        ({"phases": [5]}, r"phases\[0\]: not an object"),
    ],
)
def test_a_wrong_schedule_is_refused_by_member(schedule, document, message):
    with pytest.raises(FormatError, match=message):
        schedule(document)


@pytest.mark.parametrize("phase", [{"for": "0s", "workload": "idle"}, {"for": "x", "workload": "idle"}, {"workload": "nonsense"}])  # fmt: skip
def test_a_wrong_value_in_a_schedule_names_the_file(schedule, phase):
    with pytest.raises((UsageError, FormatError), match=r"phases\.json: "):
        schedule({"phases": [phase]})


def test_a_schedule_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FormatError, match="No such file"):
        Phases.from_file(str(tmp_path / "none"), 1)


@pytest.mark.parametrize(
    ("texts", "n", "expected"),
    [
        ([], 2, ["idle", "idle"]),
        (["sweep"], 3, ["sweep"] * 3),
        (["sweep", "uniform"], 2, ["sweep", "uniform"]),
        (["1=sweep", "uniform"], 3, ["uniform", "sweep", "uniform"]),
        (["0=sweep"], 2, ["sweep", "idle"]),
    ],
)
def test_workloads_are_given_to_vcpus(texts, n, expected):
    assert [workload.text for workload in assign(texts, n)] == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["2=sweep"], "vCPU 2 is not there; there are 2, from 0"),
        (["0=sweep", "0=idle"], "vCPU 0 twice"),
        (["idle", "idle", "idle"], "3 workloads for 2 vCPUs"),
    ],
)
def test_workloads_that_do_not_fit_the_vcpus_are_refused(texts, message):
    with pytest.raises(UsageError, match=message):
        assign(texts, 2)


@pytest.mark.parametrize(
    "length", ["0", "0ms", "1001h", "99999999999999999999h", "1e9h", "-1s", ""]
)
def test_a_phase_is_from_1_ms_to_1000_hours(tmp_path, length):
    path = tmp_path / "phases.json"
    path.write_text(json.dumps({"phases": [{"for": length, "workload": "idle"}]}))
    with pytest.raises((FormatError, UsageError), match=r"phases\[0\].for"):
        Phases.from_file(str(path), 1)


@pytest.mark.parametrize("length_ns", [0, -1, 1 << 63, 1 << 64, 10**30])
def test_phases_that_a_program_makes_are_bounded_too(length_ns):
    with pytest.raises(UsageError, match="not from 1ms to 1000h"):
        Phases(((length_ns, assign(["idle"], 1)),))


def test_the_longest_phases_run():
    hours = 1000 * 3600 * 10**9
    phases = Phases(((hours, assign(["idle"], 1)),) * 10_000, repeat=True)
    assert phases.at(5 * hours + 1).number == 5


@pytest.mark.parametrize("text", ["9" * 5000 + "=idle", "\u0663=idle", "-1=idle", "1e0=idle"])
def test_the_number_of_a_vcpu_is_a_short_decimal(text):
    with pytest.raises(UsageError, match="no such workload"):
        assign([text], 8)
