"""What people save of QEMU and libvirt is read: sessions, errors, HMP's and virsh's text."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pysampler import Measurement
from pysampler.cli import main
from pysampler.cli.pasted import measurements_in
from pysampler.errors import FormatError

GOLDEN = Path(__file__).parents[1] / "golden"
VECTOR = (GOLDEN / "vector-32gib-memcached.json").read_text()
CELL = ("--bandwidth", "10Gbps", "--downtime", "1s")
GREETING = (
    '{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}}, "capabilities": []}}'
)
EVENT = '{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE", "data": {}}'
MEASURING = '{"return": {"status": "measuring", "sample-pages": 512, "calc-time": 1}}'
HMP = """Status: measured
Start Time: 1795610610 (ms)
Sample Pages: 512 (per GB)
Period: 1 (sec)
Mode: page-sampling
Dirty rate: {} (MB/s)
"""
RING = """Status: measured
Start Time: 1795610610 (ms)
Period: 1 (sec)
Mode: dirty-ring
vcpu[0], Dirty rate: 60 (MB/s)
vcpu[1], Dirty rate: 38 (MB/s)
"""
VIRSH = """Domain: 'vm0'
  dirtyrate.calc_status=2
  dirtyrate.calc_start_time=1534523
  dirtyrate.calc_period=1
  dirtyrate.megabytes_per_second=98
"""
VIRSH_RING = VIRSH.replace(
    "dirtyrate.megabytes_per_second=98",
    "dirtyrate.calc_mode=dirty-ring\n"
    "  dirtyrate.vcpu.0.megabytes_per_second=60\n  dirtyrate.vcpu.1.megabytes_per_second=38",
)


def reply(rate, *, unit="second", time=1):
    measured = {"status": "measured", "sample-pages": 512, "dirty-rate": rate, "calc-time": time,
                "calc-time-unit": unit, "mode": "page-sampling", "start-time": 7}  # fmt: skip
    return json.dumps({"return": measured})


def session(*replies):
    lines = [GREETING, '{"execute": "qmp_capabilities"}', '{"return": {}}', EVENT, *replies]
    return "\n".join(lines) + "\n"


@pytest.fixture
def run(capsys, tmp_path):
    def run(text, *words):
        path = tmp_path / "saved"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        code = main([*words, str(path), *CELL])
        return code, *capsys.readouterr()

    return run


def rate_of(text):
    return measurements_in(text.encode()).last["dirty-rate"]


PRETTY = "".join(
    json.dumps(json.loads(line), indent=4) + "\n" for line in session(reply(98)).splitlines()
)
SHELL = f"Welcome to the QMP low-level shell!\n(QEMU) query-dirty-rate\n{reply(98)}\n(QEMU) \n"
SESSIONS = {
    "a reply": reply(98),
    "a session": session(reply(5), reply(98)),
    "one that goes on": session(reply(98), MEASURING),
    "with an error before": session('{"error": {"class": "GenericError", "desc": "no"}}', reply(98)),
    "pretty": PRETTY,
    "qmp-shell": SHELL,
    "arrows of the documents": f'-> {{ "execute": "query-dirty-rate" }}\n<- {reply(98)}\n',
    "commands of a shell": "$ echo '{\"execute\": 1}' | socat - x\n" + reply(98),
    "a log": f"2026-01-01 12:00:00.1: info: mon=0x7f reply={reply(98)}\n",
    "one line": session(reply(5), reply(98)).replace("\n", ""),
    "dos": session(reply(98)).replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + session(reply(98)),
    "hmp": HMP.format(98),
    "hmp, twice": "(qemu) info dirty_rate\n" + HMP.format(5) + "(qemu) " + HMP.format(98),
    "hmp, dos": HMP.format(98).replace("\n", "\r\n"),
    "hmp, ring": RING,
    "hmp, as it is after calc_dirty_rate": (
        "(qemu) calc_dirty_rate 1\r\nStarting dirty rate measurement with period 1 seconds\r\n"
        "[Please use 'info dirty_rate' to check results]\r\n(qemu) info dirty_rate\r\n"
        + HMP.format(98)
    ),
    "hmp, in milliseconds": HMP.format(98).replace("1 (sec)", "1000 (ms)"),
    "a prompt in brackets": "[root@host ~]# virsh qemu-monitor-command vm0 '{}'\n" + reply(98),
    "an array": f"[{reply(5)}, {reply(98)}]",
    "a pretty array": json.dumps([json.loads(reply(5)), json.loads(reply(98))], indent=2),
    "two on a log's line": f"log: {reply(5)} {reply(98)}",
    "an envelope in another": f'{{"return": {reply(98)}}}',
    "hmp over qmp": json.dumps({"return": HMP.format(98).replace("\n", "\r\n")}),
    "virsh": VIRSH,
    "virsh, ring": VIRSH_RING,
    "virsh, dos": VIRSH.replace("\n", "\r\n"),
    "virsh, started": "Start to calculate domain's memory dirty rate successfully.\n\n" + VIRSH,
}  # fmt: skip


@pytest.mark.parametrize("name", SESSIONS)
def test_the_last_rate_of_what_was_saved_counts(run, name):
    code, out, err = run(SESSIONS[name], "advise", "--quick", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["dirty-bytes"] == pytest.approx(98 * 2**20 * 4104 / 4096, rel=1e-6)


@pytest.mark.parametrize("name", SESSIONS)
@pytest.mark.parametrize("verb", ["predict", "advise"])
def test_what_has_no_periods_says_what_it_is_good_for(run, verb, name):
    code, out, err = run(SESSIONS[name], verb)
    assert (code, out) == (1, "")
    assert "`pysampler advise --quick`" in err
    assert err.count("\n") == 1


def test_utf_16_is_read(run):
    text = session(reply(98)).encode("utf-16")
    assert json.loads(run(text, "advise", "--quick", "--json")[1])["dirty-bytes"] > 98e6


@pytest.mark.parametrize("verb", ["predict", "advise"])
def test_the_last_vector_of_a_session_counts(run, verb):
    other = json.loads(VECTOR)
    other["n-zero-pages"] = 0
    bare = run(VECTOR, verb, "--json")
    for text in (
        session(json.dumps({"return": other}), json.dumps({"return": json.loads(VECTOR)})),
        json.dumps(other, indent=2) + "\n" + VECTOR,
        session(f'{{"return": {VECTOR}, "id": 3}}'),
    ):
        assert run(text, verb, "--json") == bare
    assert bare[0] == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"error": {"class": "GenericError", "desc": "still measuring"}}', "'still measuring'"),
        (session('{"error": {"class": "CommandNotFound", "desc": "no\\u001b[2J"}}'), "'no\\\\x1b[2J'"),
        ('{"error": {"class": "GenericError"}}', "'GenericError'"),
        ('{"error": {}}', "QEMU refused"),
        ('{"error": {"desc": 5}}', "QEMU refused"),
        ('{"error": {"desc": "\\ud800"}}', "QEMU refused"),
        ("(qemu) calc_dirty_rate -r 1\nError: mode dirty-ring is not enabled.\n", "mode dirty-ring is"),
        (session(), "no measurement in this session"),
        (GREETING, "no measurement in this session"),
        (reply(-1), "dirty-rate: '-1', so QEMU's measurement failed"),
        (HMP.format(-1), "dirty-rate: '-1'"),
        (VIRSH.replace("98", "-1"), "dirty-rate: '-1'"),
        (reply(98, time=0), "ask QEMU for it in milliseconds"),
        (HMP.format(98).replace("Period: 1", "Period: 0"), "ask QEMU for it in milliseconds"),
        (VIRSH.replace("period=1", "period=0"), "ask QEMU for it in milliseconds"),
        (MEASURING, "status: 'measuring', not 'measured'"),
        (HMP.format(0).replace("measured", "measuring"), "status: 'measuring'"),
        (HMP.format(0).replace("measured", "unstarted"), "calc-dirty-rate starts one"),
        ("Domain: 'vm0'\n  dirtyrate.calc_status=0\n", "calc-dirty-rate starts one"),
        (VIRSH.replace("=2", "=9"), "status: '9'"),
        (VIRSH + VIRSH.replace("vm0", "vm1"), "2 domains (vm0, vm1)"),
        ("Start to calculate domain's memory dirty rate successfully.\n", "only starts a measurement"),
        (HMP.format("(not ready)"), "dirty-rate: missing"),
        ('{"dirty-rate": 98}', "calc-time: missing"),
        ("error: Failed to get domain 'x'\nerror: Domain not found\n", "virsh refused: 'Domain not"),
        (reply(98).replace("98", "9" * 5000), "a number of 5000 digits"),
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        (session(reply(98)) + '{"return": {"status": "mea', "not JSON: line 6"),
        ("{}\n" * 20_000, "more than 10000 values"),
        ("{" * 100_000, "not JSON"),
        ("x {" * 100_000, "not JSON"),
        ("", "empty"),
        (b"\xff\xfe\x00\xd8", "not JSON"),
        (b"\x80\x81", "not JSON"),
        ("hello", "not JSON"),
        (HMP.format(98).replace("Period: 1", "Period: " + "9" * 5000), "calc-time: 0"),
    ],
)  # fmt: skip
def test_what_tells_nothing_is_one_line_with_the_reason(run, text, reason):
    code, out, err = run(text, "advise", "--quick")
    assert (code, out) == (1, "")
    assert reason in err
    assert err.count("\n") == 1
    assert "\x1b" not in err
    for verb in ("predict", "advise"):
        code, out, err = run(text, verb)
        assert (code, out) == (1, "")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    "filler",
    ["\n", " ", "\t", "(", "(qemu) ", "-> ", "Status: ", "[\n", '["x\n', "error: ", '{"a":', "x {"],
)
def test_a_long_text_of_one_kind_is_refused_and_not_searched_for_ever(filler):
    text = "x" + filler * (4_000_000 // len(filler))
    with pytest.raises(FormatError):
        measurements_in(text.encode())


PIECES = ["{", "}", "[", '"', ":", "\n", "return", "periods", '{"return": {}}', "Status: measured\n",
          "Period: 1 (sec)\n", "Dirty rate: 5 (MB/s)\n", "(QEMU) ", "dirtyrate.calc_period=1\n",
          "dirtyrate.calc_status=2\n", "\\ud800", "1" * 50, '{"error": {"desc": "x"}}', reply(9)]  # fmt: skip


@given(
    st.binary(max_size=80) | st.lists(st.sampled_from(PIECES)).map(lambda p: "".join(p).encode())
)
def test_whatever_was_saved_is_read_or_refused(text):
    with contextlib.suppress(FormatError):
        Measurement.from_dict(measurements_in(text).last)


def test_a_vector_in_a_session_serves_the_quick_rule(run):
    text = session(reply(5), json.dumps({"return": json.loads(VECTOR)}))
    assert "converges" in run(text, "advise", "--quick")[1]


@pytest.mark.parametrize("text", ["5", '"text"', "null", "[]", "{}"])
def test_another_value_is_no_vector(text):
    found = measurements_in(text.encode())
    with pytest.raises(FormatError):
        Measurement.from_dict(found.last)


def measured(dirty, *, mode="page-sampling", sampled=1024, total=65_536, seconds=(1, 2)):
    vector = Measurement(4096, tuple(1000 * s for s in seconds), tuple(dirty), sampled, 0, total)
    return dataclasses.replace(vector, mode=type(vector.mode)(mode)).to_json()


def exact(dirty, total=65_536, **members):
    return measured(dirty, mode="dirty-bitmap", sampled=total, total=total, **members)


@pytest.mark.parametrize("verb", ["predict", "advise"])
def test_silent_writers_are_told_where_exact_tracking_saw_them(run, verb):
    code, _, err = run(exact([9000, 10_000]) + measured([5, 6]), verb)
    assert code == 0
    assert "silent writers: exact tracking saw 10000 pages written in 2 s where at most " in err
    assert "predict from that vector" in err
    assert "this prediction counts them" in run(measured([5, 6]) + exact([9000, 10_000]), verb)[2]


@pytest.mark.parametrize(
    "text",
    [
        exact([300, 400]) + measured([5, 6]),  # as many as changed
        exact([9000, 10_000], total=32_768) + measured([5, 6]),  # another guest
        exact([9000, 10_000], seconds=(60, 120)) + measured([5, 6]),  # no time in common
        measured([500, 600]) + measured([5, 6]),  # not tracked
        exact([9000, 10_000]).replace("10000", "-1") + measured([5, 6]),  # no vector
        measured([5, 6]),
    ],
)
def test_nothing_is_said_of_writers_that_are_not_silent(run, text):
    code, _, err = run(text, "predict")
    assert code == 0
    assert "silent" not in err


def test_unreadable_samples_are_said_beside_a_prediction(run):
    vector = json.loads(measured([5, 6]))
    vector["x-pysampler"] = {"unreadable": [200, 200], "unreadable-causes": {"swapped-out": 200}}
    for verb in ("predict", "advise"):
        code, _, err = run(json.dumps(vector), verb)
        assert code == 0
        assert "20% of the samples could not be read (swapped-out: 200)" in err
