import json
import re

import pytest
from qmp_fakes import TIMEOUT_S, Client, FakeMeasure, serving

from pysampler import Measurement, Mode, Status
from pysampler.errors import SourceError


def request(command, **arguments):
    arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
    return json.dumps({"execute": command, "arguments": arguments})


def info(client, **arguments):
    return json.loads(client.ask(request("query-dirty-rate", **arguments)))["return"]


def hmp(client, line):
    return json.loads(client.ask(request("human-monitor-command", command_line=line)))["return"]


def measured(client, measure):
    """Finish the running measurement; return what query-dirty-rate then says."""
    measure.finish.set()
    for _ in range(10_000):
        reply = info(client, calc_time_unit="millisecond")
        if reply["status"] != "measuring":
            return reply
        measure.closed.wait(TIMEOUT_S)
    raise AssertionError("it is measuring for ever")


QEMU_MEMBERS = ["status", "sample-pages", "mode", "calc-time-unit", "start-time", "calc-time"]
VECTOR_MEMBERS = [
    "page-size", "periods", "n-dirty-pages", "n-sampled-pages", "n-zero-pages", "n-total-pages", "x-pysampler",
]  # fmt: skip


def with_rate(members):
    return [*members[:2], "dirty-rate", *members[2:]]


def test_the_states_are_unstarted_measuring_measured(client, measure):
    assert info(client) == {
        "status": "unstarted",
        "sample-pages": 0,
        "mode": "page-sampling",
        "calc-time-unit": "second",
        "start-time": 0,
        "calc-time": 0,
    }
    client.ask(request("calc-dirty-rate", calc_time=1))
    assert measure.first_period.wait(TIMEOUT_S)
    measuring = info(client)
    assert list(measuring) == QEMU_MEMBERS + VECTOR_MEMBERS
    assert (measuring["status"], measuring["calc-time"]) == ("measuring", 1)
    assert measuring["start-time"] > 1_600_000_000
    done = measured(client, measure)
    assert list(done) == with_rate(QEMU_MEMBERS) + VECTOR_MEMBERS
    # 28 of 128 samples of 256 MiB in 1.001 s
    assert (done["status"], done["dirty-rate"], done["calc-time"]) == ("measured", 55, 1001)


def test_calc_time_is_in_the_unit_of_the_query_and_cut(client, measure):
    client.ask(request("calc-dirty-rate", calc_time=250, calc_time_unit="millisecond"))
    assert measure.first_period.wait(TIMEOUT_S)
    assert (info(client)["calc-time"], info(client)["calc-time-unit"]) == (0, "second")
    assert info(client, calc_time_unit="millisecond")["calc-time"] == 250
    assert measured(client, measure)["calc-time"] == 251
    assert info(client)["calc-time"] == 0


def test_the_reply_is_a_vector_that_measurement_reads(client, measure):
    client.ask(request("calc-dirty-rate", calc_time=2))
    reply = measured(client, measure)
    vector = Measurement.from_dict(reply)
    assert vector.status is Status.MEASURED
    assert (vector.periods, vector.n_dirty_pages) == ((125, 2001), (3, 28))
    assert vector.details == {"confidence": 0.95}


def test_a_second_measurement_is_refused_while_one_runs_and_starts_afresh_after_it(client, measure):
    client.ask(request("calc-dirty-rate", calc_time=1))
    assert measure.first_period.wait(TIMEOUT_S)
    for arguments in ({"calc_time": 1}, {"calc_time": 0}, {"calc_time": 1, "sample_pages": 1}):
        assert "the dirty rate is already being measured." in client.ask(
            request("calc-dirty-rate", **arguments)
        )
    assert "Invalid parameter type" in client.ask(request("calc-dirty-rate", calc_time="x"))
    assert (
        hmp(client, "calc_dirty_rate 1") == "Error: the dirty rate is already being measured.\r\n"
    )
    measured(client, measure)
    measure.finish.clear()
    measure.closed.clear()
    assert client.ask(request("calc-dirty-rate", calc_time=1, sample_pages=200)) == '{"return": {}}'
    again = info(client)
    assert (again["status"], again["sample-pages"]) == ("measuring", 200)
    assert "dirty-rate" not in again


def test_a_refused_command_keeps_the_last_result(client, measure):
    client.ask(request("calc-dirty-rate", calc_time=1))
    before = measured(client, measure)
    client.ask(request("calc-dirty-rate", calc_time=0))
    client.ask(request("calc-dirty-rate", calc_time=1, mode="dirty-ring"))
    assert info(client, calc_time_unit="millisecond") == before


def test_sample_pages_is_0_once_an_exact_mode_has_measured(client, measure):
    client.ask(request("calc-dirty-rate", calc_time=1, mode="dirty-bitmap"))
    assert measure.first_period.wait(TIMEOUT_S)
    assert info(client)["sample-pages"] == 512
    done = measured(client, measure)
    assert (done["sample-pages"], done["mode"]) == (0, "dirty-bitmap")


@pytest.fixture
def ring(tmp_path):
    measure = FakeMeasure(modes=Mode)
    with (
        serving(f"unix:{tmp_path}/ring.sock", measure=measure) as server,
        Client(server.address) as client,
    ):
        yield client.negotiate(), measure


def test_a_ring_measurement_has_the_rate_of_each_vcpu(ring):
    client, measure = ring
    client.ask(request("calc-dirty-rate", calc_time=1, mode="dirty-ring"))
    done = measured(client, measure)
    assert list(done) == [*with_rate(QEMU_MEMBERS), "vcpu-dirty-rate", *VECTOR_MEMBERS]
    assert done["dirty-rate"] == 12
    assert done["vcpu-dirty-rate"] == [{"id": 0, "dirty-rate": 5}, {"id": 1, "dirty-rate": 7}]
    assert hmp(client, "info dirty_rate").splitlines()[2:] == [
        "Period: 1 (sec)",
        "Mode: dirty-ring",
        "Dirty rate: 12 (MB/s)",
        "vcpu[0], Dirty rate: 5 (MB/s)",
        "vcpu[1], Dirty rate: 7 (MB/s)",
    ]


@pytest.mark.parametrize("failure", [SourceError("the block is gone"), ZeroDivisionError("oops")])
def test_a_failed_measurement_ends_as_qemus_does_and_says_why(client, measure, failure):
    measure.error = failure
    client.ask(request("calc-dirty-rate", calc_time=1))
    done = measured(client, measure)
    assert list(done) == [*with_rate(QEMU_MEMBERS), "x-pysampler"]
    assert (done["status"], done["dirty-rate"]) == ("measured", -1)
    assert str(failure) in done["x-pysampler"]["error"]
    assert hmp(client, "info dirty_rate").endswith("Dirty rate: -1 (MB/s)\r\n")
    measure.error = None
    assert client.ask(request("calc-dirty-rate", calc_time=1)) == '{"return": {}}'
    assert measured(client, measure)["dirty-rate"] == 55


def test_closing_the_server_ends_a_measurement(server, client, measure):
    client.ask(request("calc-dirty-rate", calc_time=60))
    assert measure.first_period.wait(TIMEOUT_S)
    server.close()
    assert measure.closed.is_set()


def test_the_human_monitor_measures_with_qemus_texts(client, measure):
    assert hmp(client, "info dirty_rate") == (
        "Status: unstarted\r\nStart Time: 0 (ms)\r\nSample Pages: 0 (per GB)\r\nPeriod: 0 (sec)\r\n"
        "Mode: page-sampling\r\nDirty rate: (not ready)\r\n"
    )
    assert hmp(client, "calc_dirty_rate 1 1024") == (
        "Starting dirty rate measurement with period 1 seconds\r\n"
        "[Please use 'info dirty_rate' to check results]\r\n"
    )
    assert measure.first_period.wait(TIMEOUT_S)
    assert measure.asked[0]["sample_pages"] == 1024
    assert "Dirty rate: (not ready)\r\n" in hmp(client, "info dirty_rate")
    measured(client, measure)
    assert re.sub(r"Start Time: \d+", "Start Time: N", hmp(client, "  info   dirty_rate ")) == (
        "Status: measured\r\nStart Time: N (ms)\r\nSample Pages: 1024 (per GB)\r\nPeriod: 1 (sec)\r\n"
        "Mode: page-sampling\r\nDirty rate: 55 (MB/s)\r\n"
    )


USAGE = 'Try "help calc_dirty_rate" for more information\r\n'


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", ""),
        ("nonsense x", "unknown command: 'nonsense'\r\n"),
        ("info nonsense", "unknown command: 'info nonsense'\r\n"),
        ("help nonsense", "unknown command: 'nonsense'\r\n"),
        ("help info dirty_rate", "info dirty_rate  -- show dirty rate information\r\n"),
        ("info dirty_rate foo", 'dirty_rate: extraneous characters at the end of line\r\nTry "help info dirty_rate" for more information\r\n'),
        ("calc_dirty_rate 0", "Incorrect period length specified!\r\n"),
        ("calc_dirty_rate 100", "Error: Calculation time is out of range [50ms, 60000ms].\r\n"),
        ("calc_dirty_rate 1 5", "Error: sample-pages is out of range[128, 16384].\r\n"),
        ("calc_dirty_rate -b 1 512", "Error: sample-pages is used only in page-sampling mode\r\n"),
        ("calc_dirty_rate -r 1", "Error: mode dirty-ring is not enabled, use other method instead.\r\n"),
        ("calc_dirty_rate -r -b 1", "Either dirty ring or dirty bitmap can be specified!\r\n"),
        ("calc_dirty_rate -r -b 0", "Incorrect period length specified!\r\n"),
        ("calc_dirty_rate", "unexpected end of expression\r\n" + USAGE),
        ("calc_dirty_rate x", "invalid char 'x' in expression\r\n" + USAGE),
        ("calc_dirty_rate 1 x", "invalid char 'x' in expression\r\n" + USAGE),
        ("calc_dirty_rate 1 5y", "invalid char 'y' in expression\r\n" + USAGE),
        ("calc_dirty_rate 1 512 3", "calc_dirty_rate: extraneous characters at the end of line\r\n" + USAGE),
        ("calc_dirty_rate -x 1", "calc_dirty_rate: unsupported option -x\r\n" + USAGE),
        ("calc_dirty_rate 99999999999999999999", "number too large\r\n" + USAGE),
    ],
)  # fmt: skip
def test_the_human_monitor_answers_as_qemus_does(client, line, text):
    assert hmp(client, line) == text


def test_the_human_monitor_explains_its_commands(client):
    assert hmp(client, "help").startswith(
        "calc_dirty_rate [-r] [-b] second [sample_pages_per_GB] -- "
    )
    names = ("dirty_rate", "migrate", "migrate_capabilities", "migrate_parameters", "status")
    lines = "".join(hmp(client, f"help info {name}") for name in (*names, "vcpu_dirty_limit"))
    assert hmp(client, "help info") == hmp(client, "info") == lines
    assert hmp(client, "help").endswith(lines)


def test_the_human_monitor_knows_its_vcpus(client):
    line = {"command_line": "info dirty_rate"}
    assert "Status" in client.ask(request("human-monitor-command", **line, cpu_index=1))
    for index in (2, -1):
        assert "Parameter 'cpu-index' expects a CPU number" in client.ask(
            request("human-monitor-command", **line, cpu_index=index)
        )
