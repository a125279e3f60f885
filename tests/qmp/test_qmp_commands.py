import json
import re
from importlib import import_module
from pkgutil import iter_modules

import pytest
from qmp_fakes import Client, serving

from pysampler import Mode
from pysampler.errors import StateError
from pysampler.guest.run_state import RunState
from pysampler.qmp import commands as package
from pysampler.qmp.commands.table import COMMANDS, LINES

GREETING = (
    '{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "pysampler '
)


def error(desc, error_class="GenericError"):
    return json.dumps({"error": {"class": error_class, "desc": desc}})


def without_time(line):
    return re.sub(r'"seconds": \d+, "microseconds": \d+', "", line)


def request(command, **arguments):
    arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
    return json.dumps({"execute": command, "arguments": arguments})


def test_the_greeting_is_qemus(server):
    with Client(server.address) as client:
        line = client.line()
    assert line.startswith(GREETING)
    assert line.endswith('"}, "capabilities": ["oob"]}}')


def test_before_negotiation_nothing_but_negotiation_is_heard(server):
    expecting = error(
        "Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound"
    )
    with Client(server.address) as client:
        client.line()
        assert client.ask('{"execute": "query-status"}') == expecting
        assert client.ask('{"execute": "nonsense"}') == expecting
        assert client.ask('{"exec-oob": "qmp_capabilities"}') == error(
            "QMP input member 'exec-oob' is unexpected"
        )
        assert client.ask(request("qmp_capabilities", enable=["foo"])) == error(
            "Parameter 'null' does not accept value 'foo'"
        )
        assert client.ask(request("qmp_capabilities", enable="oob")) == error(
            "Invalid parameter type for 'enable', expected: array"
        )
        assert client.ask(request("qmp_capabilities", enable=[1])) == error(
            "Invalid parameter type for 'enable[0]', expected: string"
        )
        assert client.ask('{"execute": "qmp_capabilities"}') == '{"return": {}}'
        assert client.ask('{"execute": "qmp_capabilities"}') == error(
            "Capabilities negotiation is already complete, command ignored", "CommandNotFound"
        )
        assert client.ask('{"exec-oob": "query-status"}') == error(
            "QMP input member 'exec-oob' is unexpected"
        )


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("[]", error("QMP input must be a JSON object")),
        ("5 ", error("QMP input must be a JSON object")),
        ("{}", error("QMP input lacks member 'execute'")),
        ('{"foo": 1}', error("QMP input member 'foo' is unexpected")),
        ('{"execute": 1}', error("QMP input member 'execute' must be a string")),
        ('{"exec-oob": 1}', error("QMP input member 'exec-oob' must be a string")),
        (
            '{"execute": "stop", "exec-oob": "stop"}',
            error("QMP input member 'execute' clashes with 'exec-oob'"),
        ),
        (
            '{"execute": "query-status", "arguments": []}',
            error("QMP input member 'arguments' must be an object"),
        ),
        (
            '{"execute": "query-status", "arguments": null}',
            error("QMP input member 'arguments' must be an object"),
        ),
        ('{"execute": "nönsense"}', error("The command nönsense has not been found", "CommandNotFound").replace("f6", "F6")),
        ('{"exec-oob": "query-dirty-rate"}', error("The command query-dirty-rate does not support OOB")),
        ('{"exec-oob": "nonsense"}', error("The command nonsense has not been found", "CommandNotFound")),
        ('{"execute": "query-status", "arguments": {"x": 1}}', error("Parameter 'x' is unexpected")),
        ("nonsense ", error("JSON parse error, invalid keyword 'nonsense'")),
    ],
)  # fmt: skip
def test_a_request_that_is_none_is_refused_in_qemus_words(client, text, reply):
    assert client.ask(text) == reply


@pytest.mark.parametrize("request_id", ["1", "null", '"é"', '[{"a": [1.5, -0]}]', '{"id": {}}'])
def test_any_id_comes_back(client, request_id):
    echo = json.loads(request_id)
    done = client.ask(f'{{"execute": "query-status", "id": {request_id}}}')
    assert list(json.loads(done).items())[-1] == ("id", echo)
    refused = client.ask(f'{{"id": {request_id}, "foo": 1}}')
    assert next(iter(json.loads(refused).items())) == ("id", echo)


def test_an_id_nested_to_the_limit_comes_back(client):
    nested = "[" * 1022 + "]" * 1022
    assert client.ask(f'{{"execute": "query-status", "id": {nested}}}').endswith(
        f'"id": {nested}}}'
    )


def test_queries_have_qemus_members_in_qemus_order(client):
    assert client.ask('{"execute": "query-version"}').startswith(
        '{"return": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "pysampler '
    )
    assert client.ask('{"execute": "query-status"}') == (
        '{"return": {"status": "running", "running": true}}'
    )
    assert client.ask('{"execute": "query-memory-size-summary"}') == (
        '{"return": {"base-memory": 268435456, "plugged-memory": 0}}'
    )
    cpus = client.ask('{"execute": "query-cpus-fast"}')
    assert cpus.startswith(
        '{"return": [{"thread-id": 4001, "props": {"core-id": 0, "thread-id": 0, "socket-id": 0}, '
        '"qom-path": "/machine/unattached/device[0]", "cpu-index": 0, "target": "'
    )
    assert len(json.loads(cpus)["return"]) == 2


def test_query_commands_names_what_there_is(client):
    names = [
        entry["name"] for entry in json.loads(client.ask('{"execute": "query-commands"}'))["return"]
    ]
    assert names == list(COMMANDS)
    assert {"calc-dirty-rate", "query-dirty-rate", "stop", "cont", "quit"} < set(names)


def test_stop_and_cont_send_their_event_first_and_only_when_something_changes(client, guest):
    assert without_time(client.ask('{"execute": "stop"}')) == '{"timestamp": {}, "event": "STOP"}'
    assert client.line() == '{"return": {}}'
    assert not guest.running
    assert client.ask('{"execute": "stop"}') == '{"return": {}}'
    assert client.ask('{"execute": "query-status"}') == (
        '{"return": {"status": "paused", "running": false}}'
    )
    assert without_time(client.ask('{"execute": "cont"}')) == '{"timestamp": {}, "event": "RESUME"}'
    assert client.line() == '{"return": {}}'
    assert guest.running
    assert client.ask('{"execute": "cont"}') == '{"return": {}}'


@pytest.mark.parametrize("state", RunState)
def test_the_run_state_is_shown_as_qemu_shows_it(client, guest, state):
    guest.state = state
    running = json.dumps(state == "running")
    assert client.ask('{"execute": "query-status"}') == (
        f'{{"return": {{"status": "{state.value}", "running": {running}}}}}'
    )
    shown = state.value if state in ("running", "paused") else f"paused ({state.value})"
    line = client.ask(request("human-monitor-command", command_line="info status"))
    assert json.loads(line) == {"return": f"VM status: {shown}\r\n"}


def test_cont_before_the_end_of_a_migration_is_refused(client, guest):
    guest.state = RunState.FINISH_MIGRATE
    assert client.ask('{"execute": "cont"}') == error("Migration is not finalized yet")


def test_events_reach_every_client_that_has_negotiated(server, client):
    with Client(server.address) as negotiated, Client(server.address) as silent:
        negotiated.negotiate()
        silent.line()
        event = client.ask('{"execute": "stop"}')
        assert negotiated.line() == event
        assert silent.ask('{"execute": "qmp_capabilities"}') == '{"return": {}}'
        assert silent.ask('{"execute": "query-status"}') == (
            '{"return": {"status": "paused", "running": false}}'
        )


def test_quit_says_so_to_all_answers_and_ends(server, client, guest):
    with Client(server.address) as other:
        other.negotiate()
        client.send(b'{"execute": "quit", "id": 9}{"execute": "query-status"}')
        event = client.line()
        assert without_time(event) == (
            '{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}'
        )
        assert client.line() == '{"return": {}, "id": 9}'
        assert guest.shutdown_requested.wait(20)
        server.shutdown("host-signal")  # as the command line does; it has been said
        server.close()
        assert other.line() == event
        assert other.line() == ""


def test_a_signal_says_shutdown_too(server, client):
    server.shutdown("host-signal")
    assert without_time(client.line()) == (
        '{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}'
    )


def test_the_workload_is_told_per_vcpu(client):
    assert client.ask('{"execute": "x-query-workload"}') == (
        '{"return": [{"cpu-index": 0, "thread-id": 4001, "workload": "uniform:wps=500k", '
        '"writes": 12345, "writes-per-second": 500000}, '
        '{"cpu-index": 1, "thread-id": 4002, "workload": "idle", "writes": 0, "writes-per-second": 0}]}'
    )


def test_the_truth_is_told_per_block_and_in_all(client):
    assert client.ask(request("x-count-dirty-since", monotonic_ns=5007)) == (
        '{"return": {"blocks": [{"id": "pc.ram", "pages": 7}, {"id": "vga", "pages": 1}], "pages": 8}}'
    )


def test_a_guest_without_truth_says_how_to_get_it(client, guest):
    guest.truth = False
    assert client.ask(request("x-count-dirty-since", monotonic_ns=0)) == error(
        "the guest keeps no truth; start it with --truth"
    )


def test_a_command_that_fails_in_an_unforeseen_way_is_an_error_and_not_the_end(client, guest):
    guest.blocks = ()
    assert client.ask('{"execute": "query-memory-size-summary"}') == error(
        "internal error: IndexError: tuple index out of range"
    )
    assert "running" in client.ask('{"execute": "query-status"}')


def test_a_vcpu_dirty_limit_needs_what_qemu_says_it_needs(client, migration):
    migration.error = StateError(
        "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'"
    )
    assert client.ask(request("set-vcpu-dirty-limit", dirty_rate=50)) == error(
        "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'"
    )


@pytest.mark.parametrize(
    ("arguments", "desc"),
    [
        ({}, "Parameter 'calc-time' is missing"),
        ({"foo": 2}, "Parameter 'calc-time' is missing"),
        ({"calc_time": 1, "foo": 2}, "Parameter 'foo' is unexpected"),
        ({"foo": 2, "calc_time": "a"}, "Invalid parameter type for 'calc-time', expected: integer"),
        ({"mode": "bad", "calc_time": None}, "Invalid parameter type for 'calc-time', expected: integer"),
        ({"calc_time": 1.0}, "Invalid parameter type for 'calc-time', expected: integer"),
        ({"calc_time": True}, "Invalid parameter type for 'calc-time', expected: integer"),
        ({"calc_time": 1 << 63}, "Invalid parameter type for 'calc-time', expected: integer"),
        ({"calc_time": 1, "mode": "bad", "sample_pages": "x"}, "Invalid parameter type for 'sample-pages', expected: integer"),
        ({"calc_time": 1, "sample_pages": "x", "calc_time_unit": "hour"}, "Parameter 'calc-time-unit' does not accept value 'hour'"),
        ({"calc_time": 1, "mode": "nonsense"}, "Parameter 'mode' does not accept value 'nonsense'"),
        ({"calc_time": 1, "mode": 5}, "Invalid parameter type for 'mode', expected: string"),
        ({"calc_time": 0, "mode": "nonsense"}, "Parameter 'mode' does not accept value 'nonsense'"),
        ({"calc_time": 0}, "Calculation time is out of range [50ms, 60000ms]."),
        ({"calc_time": 61}, "Calculation time is out of range [50ms, 60000ms]."),
        ({"calc_time": -(1 << 63)}, "Calculation time is out of range [50ms, 60000ms]."),
        ({"calc_time": 49, "calc_time_unit": "millisecond"}, "Calculation time is out of range [50ms, 60000ms]."),
        ({"calc_time": 60_001, "calc_time_unit": "millisecond"}, "Calculation time is out of range [50ms, 60000ms]."),
        ({"calc_time": 0, "sample_pages": 1, "mode": "dirty-bitmap"}, "Calculation time is out of range [50ms, 60000ms]."),
        ({"calc_time": 1, "sample_pages": 1, "mode": "dirty-bitmap"}, "sample-pages is used only in page-sampling mode"),
        ({"calc_time": 1, "sample_pages": 512, "mode": "dirty-ring"}, "sample-pages is used only in page-sampling mode"),
        ({"calc_time": 1, "sample_pages": 127}, "sample-pages is out of range[128, 16384]."),
        ({"calc_time": 1, "sample_pages": 16_385}, "sample-pages is out of range[128, 16384]."),
        ({"calc_time": 1, "mode": "dirty-ring"}, "mode dirty-ring is not enabled, use other method instead."),
    ],
)  # fmt: skip
def test_calc_dirty_rate_refuses_in_qemus_words_and_order(client, measure, arguments, desc):
    unstarted = client.ask('{"execute": "query-dirty-rate"}')
    assert client.ask(request("calc-dirty-rate", **arguments)) == error(desc)
    assert client.ask('{"execute": "query-dirty-rate"}') == unstarted
    assert measure.asked == []


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({"calc_time": 60}, (60_000, "second", 512, "page-sampling")),
        ({"calc_time": 50, "calc_time_unit": "millisecond"}, (50, "millisecond", 512, "page-sampling")),
        ({"calc_time": 1, "sample_pages": 16_384}, (1000, "second", 16_384, "page-sampling")),
        ({"calc_time": 1, "sample_pages": 128, "mode": "page-sampling"}, (1000, "second", 128, "page-sampling")),
        ({"calc_time": 1, "mode": "dirty-bitmap"}, (1000, "second", 512, "dirty-bitmap")),
    ],
)  # fmt: skip
def test_calc_dirty_rate_measures_what_is_asked(client, measure, arguments, asked):
    assert client.ask(request("calc-dirty-rate", **arguments)) == '{"return": {}}'
    assert measure.first_period.wait(20)
    [actual] = measure.asked
    assert asked == (
        actual["calc_time_ms"], actual["calc_time_unit"], actual["sample_pages"], actual["mode"].value
    )  # fmt: skip


def test_every_mode_of_the_schema_exists():
    [mode] = [
        argument for argument in COMMANDS["calc-dirty-rate"].arguments if argument.name == "mode"
    ]
    assert mode.type.values == tuple(mode.value for mode in Mode)


def test_several_servers_do_not_disturb_each_other(tmp_path, client):
    with serving(f"unix:{tmp_path}/other.sock") as other, Client(other.address) as second:
        second.negotiate()
        second.ask('{"execute": "stop"}')
        assert client.ask('{"execute": "query-status"}').endswith('"running": true}}')


def test_the_table_has_the_commands_and_lines_of_every_file():
    files = [import_module(f"{package.__name__}.{m.name}") for m in iter_modules(package.__path__)]
    assert set(COMMANDS) == {name for file in files for name in vars(file).get("COMMANDS", ())}
    assert set(LINES) == {name for file in files for name in vars(file).get("LINES", ())}
