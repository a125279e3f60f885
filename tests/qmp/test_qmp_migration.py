"""The commands and lines about migration; texts are a real QEMU 10.0.2's."""

import json
import threading

import pytest
from qmp_fakes import TIMEOUT_S, Client

from pysampler.errors import StateError, UsageError
from pysampler.migration.info import MigrationInfo, RamInfo

UNIX = {"transport": "socket", "type": "unix", "path": "/x y"}
INET = {"transport": "socket", "type": "inet", "host": "127.0.0.1", "port": "4444"}


def ask(client, name, **arguments):
    """Return what a command returns, or its error's text; events that come first are left out."""
    arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
    line = client.ask(json.dumps({"execute": name, "arguments": arguments}))
    while (reply := json.loads(line)).get("event"):
        line = client.line()
    return reply["error"]["desc"] if "error" in reply else reply["return"]


def hmp(client, line):
    return ask(client, "human-monitor-command", command_line=line)


def channel(address, kind="main"):
    return {"channel-type": kind, "addr": address}


def test_migrate_begins_and_its_event_comes_before_the_reply(client, migration):
    client.send(b'{"execute": "migrate", "arguments": {"uri": "unix:/x", "detach": true}}')
    event = json.loads(client.line())
    assert (event["event"], event["data"]) == ("MIGRATION", {"status": "setup"})
    assert client.line() == '{"return": {}}'
    assert migration.asked == [("migrate", "unix:/x", False)]
    ask(client, "migrate", uri="tcp:127.0.0.1:1", resume=True)
    assert migration.asked[1:] == [("migrate", "tcp:127.0.0.1:1", True)]


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        (UNIX, "unix:/x y"),
        ({**UNIX, "abstract": False, "tight": True}, "unix:/x y"),
        (INET, "tcp:127.0.0.1:4444"),
        ({**INET, "host": "::1", "to": 5, "ipv6": True}, "tcp:[::1]:4444"),
        ({"transport": "exec", "args": ["cat"]}, "exec:"),
        ({"transport": "rdma", "host": "a", "port": "1"}, "rdma:"),
        ({"transport": "file", "filename": "x", "offset": 0}, "file:"),
        ({"transport": "socket", "type": "vsock", "cid": "1", "port": "2"}, "vsock:"),
        ({"transport": "socket", "type": "fd", "str": "x"}, "fd:"),
    ],
)
@pytest.mark.parametrize("command", ["migrate", "migrate-incoming"])
def test_a_channel_is_what_its_uri_is(client, migration, command, address, uri):
    assert ask(client, command, channels=[channel(address)]) == {}
    assert migration.asked[0][1] == uri


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "need either 'uri' or 'channels' argument"),
        ({"channels": []}, "need either 'uri' or 'channels' argument"),
        (
            {"uri": "unix:/x", "channels": [channel(UNIX)]},
            "need either 'uri' or 'channels' argument",
        ),
        ({"channels": [channel(UNIX)] * 2}, "Channel list has more than one main entry"),
        ({"channels": [channel(UNIX, "cpr")]}, "Channel list has no main entry"),
        (
            {"channels": [channel({**UNIX, "type": "carrier-pigeon"})]},
            "Parameter 'type' does not accept value 'carrier-pigeon'",
        ),
        ({"uri": "unix:/x", "blk": True}, "Parameter 'blk' is unexpected"),
    ],
)
@pytest.mark.parametrize("command", ["migrate", "migrate-incoming"])
def test_what_is_no_destination_is_refused(client, migration, command, arguments, text):
    assert ask(client, command, **arguments) == text
    assert migration.asked == []


def test_an_abstract_socket_is_refused_by_name(client, migration):
    reply = ask(client, "migrate", channels=[channel({**UNIX, "abstract": True})])
    assert "no abstract Unix socket" in reply
    assert migration.asked == []


def test_uri_and_an_empty_list_of_channels_is_the_uri(client, migration):
    assert ask(client, "migrate", uri="unix:/x", channels=[]) == {}
    assert migration.asked == [("migrate", "unix:/x", False)]


@pytest.mark.parametrize(
    ("name", "arguments", "asked"),
    [
        ("migrate_cancel", {}, ("cancel",)),
        ("migrate-incoming", {"uri": "unix:/x"}, ("incoming", "unix:/x", True)),
        (
            "migrate-incoming",
            {"uri": "unix:/x", "exit_on_error": False},
            ("incoming", "unix:/x", False),
        ),
        ("migrate-continue", {"state": "pre-switchover"}, ("proceed", "pre-switchover")),
        ("migrate-start-postcopy", {}, ("start_postcopy",)),
        ("migrate-pause", {}, ("pause",)),
        ("migrate-recover", {"uri": "unix:x"}, ("recover", "unix:x")),
        ("set-vcpu-dirty-limit", {"dirty_rate": 10}, ("set", 10, None, "merged", 15.0)),
        (
            "set-vcpu-dirty-limit",
            {"dirty_rate": 10, "cpu_index": 1, "x_method": "v1", "x_pause": 500},
            ("set", 10, 1, "v1", 0.5),
        ),
        ("cancel-vcpu-dirty-limit", {}, ("cancel limit", None)),
        ("cancel-vcpu-dirty-limit", {"cpu_index": -1}, ("cancel limit", -1)),
    ],
)
def test_a_command_asks_the_migration_and_passes_its_errors_on(
    client, migration, name, arguments, asked
):
    assert ask(client, name, **arguments) == {}
    migration.error = StateError("Postcopy migration in progress, cannot cancel.")
    assert ask(client, name, **arguments) == "Postcopy migration in progress, cannot cancel."
    assert migration.asked == [asked, asked]


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("migrate -d unix:/x", ("migrate", "unix:/x", False)),
        ("migrate -d -r unix:/x", ("migrate", "unix:/x", True)),
        ("migrate_cancel", ("cancel",)),
        ("migrate_incoming unix:/x", ("incoming", "unix:/x", True)),
        ("migrate_continue pre-switchover", ("proceed", "pre-switchover")),
        ("migrate_start_postcopy", ("start_postcopy",)),
        ("migrate_pause", ("pause",)),
        ("migrate_recover unix:x", ("recover", "unix:x")),
    ],
)
def test_a_line_prints_nothing_but_errors(client, migration, line, asked):
    assert hmp(client, line) == ""
    migration.error = UsageError("unknown migration protocol: x")
    assert hmp(client, line) == "Error: unknown migration protocol: x\r\n"
    assert migration.asked == [asked, asked]


def test_migrate_in_the_human_monitor_does_not_wait(client):
    assert hmp(client, "migrate unix:/x") == (
        "terminal does not allow synchronous migration, continuing detached\r\n"
    )


def test_query_migrate_and_its_line(client, migration):
    assert ask(client, "query-migrate") == {}
    assert hmp(client, "info migrate").endswith("clear-bitmap-shift: 18\r\n")
    ram = RamInfo(total=1 << 20, mbps=273.16368)
    migration.known = MigrationInfo(status="active", setup_time=1, ram=ram)
    reply = client.ask('{"execute": "query-migrate"}')
    assert reply.startswith('{"return": {"status": "active", "setup-time": 1, "ram": {"total": ')
    assert '"mbps": 273.16368, "transferred": 0' in reply
    assert "\r\nsetup: 1 ms\r\ntransferred ram: 0 kbytes\r\nthroughput: 273.16 mbps\r\n" in hmp(
        client, "info migrate"
    )


def test_parameters_and_capabilities_are_set_and_queried(client, migration):
    arguments = {"max-bandwidth": -1, "tls-creds": None, "x-aggression-level": 0.25}
    assert ask(client, "migrate-set-parameters", **arguments) == {}
    assert ask(client, "query-migrate-parameters") == migration.parameters()
    assert migration.settings.value("max-bandwidth") == (1 << 64) - 1
    reply = ask(client, "migrate-set-parameters", tls_creds=5)
    assert reply == "Invalid parameter type for 'tls-creds', expected: StrOrNull"
    reply = ask(client, "migrate-set-parameters", block_bitmap_mapping=[])
    assert "no disks" in reply
    capabilities = [{"capability": "events", "state": True}]
    assert ask(client, "migrate-set-capabilities", capabilities=capabilities) == {}
    assert ask(client, "query-migrate-capabilities") == migration.capabilities()
    assert migration.settings.enabled("events")


def test_own_settings_show_in_the_human_monitor_once_they_are_set(client):
    assert "x-" not in hmp(client, "info migrate_capabilities").replace("x-colo", "").replace(
        "x-ignore-shared", ""
    )
    assert "x-aggression" not in hmp(client, "info migrate_parameters")
    assert hmp(client, "migrate_set_capability x-aggression on") == ""
    assert hmp(client, "migrate_set_parameter x-aggression-level 0.75") == ""
    assert hmp(client, "migrate_set_parameter x-aggression-ratio averages") == ""
    assert hmp(client, "migrate_set_parameter x-dirty-limit-method v1") == ""
    assert hmp(client, "info migrate_capabilities").endswith("x-aggression: on\r\n")
    assert hmp(client, "info migrate_parameters").endswith(
        "x-aggression-level: 0.75\r\nx-aggression-ratio: averages\r\nx-dirty-limit-method: v1\r\n"
    )
    assert hmp(client, "migrate_set_parameter x-aggression-level much") == (
        "Error: Parameter 'x-aggression-level' expects a number\r\n"
    )
    assert hmp(client, "migrate_set_parameter x-aggression-ratio mean") == (
        "Error: Parameter 'x-aggression-ratio' does not accept value 'mean'\r\n"
    )
    reply = ask(client, "migrate-set-parameters", x_aggression_ratio="mean")
    assert reply == "Parameter 'x-aggression-ratio' does not accept value 'mean'"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("100", 100 << 20), ("1.5", 3 << 19), ("1.5M", 3 << 19), ("10K", 10240), ("10B", 10),
        (".5", 1 << 19), ("5.", 5 << 20), ("+5", 5 << 20), ("0x10", 16 << 20), ("2g", 2 << 30),
        ("0", 0),
    ],
)  # fmt: skip
def test_a_bandwidth_is_in_mib_where_it_has_no_suffix(client, migration, word, value):
    assert hmp(client, f"migrate_set_parameter max-bandwidth {word}") == ""
    assert migration.settings.number("max-bandwidth") == value


@pytest.mark.parametrize(
    "word", ["x", "1x", "-1", "1e3", "1.5B", "0x10M", "16E", "15.9E", "9" * 20, "9" * 400, "."]
)
def test_what_is_no_bandwidth_is_refused(client, migration, word):
    reply = hmp(client, f"migrate_set_parameter max-bandwidth {word}")
    assert reply == f"Error: Invalid size {word}\r\n"
    assert migration.settings.number("max-bandwidth") == 128 << 20


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("downtime-limit", "1K", 1024),
        ("downtime-limit", "010", 10),
        ("cpu-throttle-initial", "010", 8),
        ("cpu-throttle-initial", "0x10", 16),
        ("max-postcopy-bandwidth", "10", 10),
        ("cpu-throttle-tailslow", "yes", True),
        ("mode", "cpr-reboot", "cpr-reboot"),
        ("tls-authz", "me", "me"),
        ("x-checkpoint-delay", "5", 5),
    ],
)
def test_a_word_is_read_as_the_parameters_type_wants_it(client, migration, name, word, value):
    assert hmp(client, f"migrate_set_parameter {name} {word}") == ""
    assert migration.settings.value(name) == value


def test_the_line_about_dirty_limits_lists_them(client, migration):
    assert ask(client, "query-vcpu-dirty-limit") == []
    assert hmp(client, "info vcpu_dirty_limit") == "Dirty page limit not enabled!\r\n"
    migration.limits = ((0, 30, 79), (1, 30, 26))
    reply = client.ask('{"execute": "query-vcpu-dirty-limit"}')
    assert reply == (
        '{"return": [{"limit-rate": 30, "current-rate": 79, "cpu-index": 0}, '
        '{"limit-rate": 30, "current-rate": 26, "cpu-index": 1}]}'
    )
    assert hmp(client, "info vcpu_dirty_limit") == (
        "vcpu[0], limit rate 30 (MB/s), current rate 79 (MB/s)\r\n"
        "vcpu[1], limit rate 30 (MB/s), current rate 26 (MB/s)\r\n"
    )


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("set_vcpu_dirty_limit 10", ("set", 10, None, "merged", 15)),
        ("set_vcpu_dirty_limit 10 1", ("set", 10, 1, "merged", 15)),
        ("set_vcpu_dirty_limit 10 -1", ("set", 10, None, "merged", 15)),
        ("cancel_vcpu_dirty_limit", ("cancel limit", None)),
        ("cancel_vcpu_dirty_limit 0", ("cancel limit", 0)),
    ],
)
def test_the_lines_that_limit_say_where_to_look(client, migration, line, asked):
    assert hmp(client, line) == (
        "[Please use 'info vcpu_dirty_limit' to query dirty limit for virtual CPU]\r\n"
    )
    assert migration.asked == [asked]


@pytest.mark.parametrize(
    "request_line",
    [
        '{"execute": "cancel-vcpu-dirty-limit"}',
        (
            '{"execute": "human-monitor-command", '
            '"arguments": {"command-line": " cancel_vcpu_dirty_limit"}}'
        ),
    ],
)
def test_a_cancel_that_takes_its_time_keeps_nobody_else_waiting(
    server, client, migration, request_line
):
    migration.may_go_on.clear()
    client.send(request_line.encode())
    try:
        with Client(server.address) as other:
            other.negotiate()
            assert other.ask('{"execute": "query-migrate"}') == '{"return": {}}'
            assert hmp(other, "info vcpu_dirty_limit") == "Dirty page limit not enabled!\r\n"
    finally:
        threading.Timer(0, migration.may_go_on.set).start()
    assert client.line().startswith('{"return": ')
    assert migration.may_go_on.wait(TIMEOUT_S)
