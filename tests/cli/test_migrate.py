"""``pysampler migrate`` against sources that answer as a test says; QEMU's own is in integration/."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from fake_source import ACTIVE, COMPLETED, RAM, fake_source
from subject import subject

from pysampler.cli import main
from pysampler.prediction.records import read_migrations

TO = ("--to", "unix:/tmp/nobody-looks")


@pytest.fixture
def source(tmp_path):
    with fake_source(tmp_path) as source:
        yield source


def run(capsys, source, *words):
    code = main(["migrate", "--from", source.address, *TO, *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def one_line(err):
    (line,) = err.splitlines()
    return line.removeprefix("pysampler migrate: ")


def test_it_sets_what_is_asked_starts_and_tells_what_came_of_it(capsys, source):
    code, out, err = run(
        capsys, source, "--bandwidth", "400MiB/s", "--downtime", "2s",
        "--capability", "auto-converge", "--capability", "events=off",
        "--parameter", "max-cpu-throttle=80", "--parameter", "max-postcopy-bandwidth=0",
        "--parameter", "xbzrle-cache-size=16M", "--parameter", "cpu-throttle-tailslow=on",
        "--parameter", "mode=normal",
    )  # fmt: skip
    assert code == 0
    assert source.arguments("migrate-set-capabilities") == [
        {"capabilities": [{"capability": "auto-converge", "state": True},
                          {"capability": "events", "state": False}]}
    ]  # fmt: skip
    assert source.arguments("migrate-set-parameters") == [
        {"max-bandwidth": 400 << 20, "downtime-limit": 2000, "max-cpu-throttle": 80,
         "max-postcopy-bandwidth": 0, "xbzrle-cache-size": 16 << 20, "cpu-throttle-tailslow": True,
         "mode": "normal"}
    ]  # fmt: skip
    assert source.arguments("migrate") == [{"uri": TO[1]}]
    figures = dict(line.split(maxsplit=1) for line in out.splitlines()[:1])
    assert figures["status"].strip() == "completed"
    for words in ("10 s, 5 ms of it", "120 ms (limit 2 s)", "400 MiB/s", "262144 whole pages",
                  "within the downtime-limit", "The guest is at the destination"):  # fmt: skip
        assert words in out
    assert "pass 1, 512 MiB of 1 GiB remain, sending 100 MiB/s" in err
    assert "ends in at least 3.12 s" in err  # (512 MiB - 2 s of 100 MiB/s) at 100 MiB/s


def test_nothing_is_set_that_is_not_asked_for(capsys, source):
    assert run(capsys, source)[0] == 0
    assert not {"migrate-set-parameters", "migrate-set-capabilities"} & set(source.commands())


@pytest.mark.parametrize(
    ("rate", "words"),
    [(0, "ends in about 4.82 s"), (12_800, "ends in about 9.64 s"), (25_600, "no end in sight")],
)
def test_the_expected_end_follows_from_what_is_sent_and_dirtied(capsys, source, rate, words):
    ram = {**RAM, "dirty-sync-count": 2, "dirty-pages-rate": rate}
    source.replies["query-migrate"] = [{**ACTIVE, "ram": ram}, COMPLETED]
    assert words in run(capsys, source)[2]


def test_the_summary_tells_of_throttle_downtime_and_what_was_sent_again(capsys, source):
    last = {**COMPLETED, "downtime": 900, "ram": {**COMPLETED["ram"], "normal": 393_216}}
    source.replies["query-migrate"] = [
        {**ACTIVE, "cpu-throttle-percentage": 40}, {**ACTIVE, "cpu-throttle-percentage": 20}, last,
    ]  # fmt: skip
    out = run(capsys, source)[1]
    assert "up to 40 %" in out
    assert "longer than the downtime-limit of 300 ms" in out
    assert "512 MiB were sent again" in out


def test_a_guest_that_was_stopped_did_not_stand_still(capsys, source):
    source.replies["query-status"] = {"running": False, "status": "prelaunch"}
    out = run(capsys, source)[1]
    assert "It was stopped before" in out
    assert "stood still" not in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--bandwidth", "fast"], "'fast' is not a rate"),
        (["--downtime", "300"], "has no unit"),
        (["--downtime", "0.5ms"], "no whole number of ms"),
        (["--capability", "auto converge"], "is not NAME, NAME=on or NAME=off"),
        (["--capability", "events=maybe"], "is not NAME, NAME=on or NAME=off"),
        (["--parameter", "max-cpu-throttle"], "is not NAME=VALUE"),
        (["--parameter", "max-cpu-throttle=much"], "'much' is not a whole number"),
        (["--parameter", "cpu-throttle-tailslow=1"], "'1' is not on or off"),
        (["--parameter", "max-bandwith=1"], "has no 'max-bandwith'; did you mean max-bandwidth?"),
        (["--parameter", "x-share=half"], "'half' is not a number"),
        (["--bandwidth", "1Gbps", "--parameter", "max-bandwidth=1"], "give one of them"),
        (["--pid", "1"], "--pid is used only with --measure"),
        (["-o", "records"], "--output needs --measure, e.g. --measure 10s"),
        (["--measure", "1ms"], "calc-time"),
        (["--deadline", "0s"], "not between"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_moves(capsys, source, words, text):
    code, out, err = run(capsys, source, *words)
    assert (code, out) == (2, "")
    assert text in one_line(err)
    assert "migrate" not in source.commands()


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("x-share=0.25", "x-share", 0.25),
        ("x-way=b", "x-way", "b"),
        ("x-aggression-level=1", "x-aggression-level", 1.0),
        ("x-aggression-ratio=averages", "x-aggression-ratio", "averages"),
        ("x-dirty-limit-method=v1", "x-dirty-limit-method", "v1"),
    ],
)
def test_a_parameter_that_is_not_qemus_has_the_type_it_has_there(capsys, source, text, name, value):
    assert run(capsys, source, "--parameter", text)[0] == 0
    assert source.arguments("migrate-set-parameters") == [{name: value}]


@pytest.mark.parametrize(
    ("command", "words"),
    [("migrate", []), ("migrate-set-parameters", ["--bandwidth", "1Gbps"]),
     ("migrate-set-capabilities", ["--capability", "events"])],
)  # fmt: skip
def test_a_refusal_is_told_with_the_command(capsys, source, command, words):
    source.replies[command] = Exception("There's a migration\nprocess in progress")
    code, out, err = run(capsys, source, *words)
    assert (code, out) == (1, "")
    text = f"the source refuses {command}: There's a migration\\nprocess in progress"
    assert one_line(err) == text


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ({"status": "failed", "error-desc": "Failed to connect to 'x': No such file"},
         "the migration is failed: Failed to connect to 'x': No such file"),
        ({"status": "failed"}, "the migration is failed: the source does not say why"),
        ({"status": "postcopy-paused", "error-desc": "Channel error"},
         "the migration is postcopy-paused: Channel error"),
    ],
)  # fmt: skip
def test_a_failed_migration_is_one_line_with_its_cause(capsys, source, last, text):
    source.replies["query-migrate"] = [{"status": "setup"}, last]
    code, out, err = run(capsys, source)
    assert (code, out, one_line(err)) == (1, "", text)


def test_a_migration_that_another_client_cancels_is_no_success(capsys, source):
    source.replies["query-migrate"] = [ACTIVE, {"status": "cancelled"}]
    code, out, err = run(capsys, source)
    assert code == 1
    assert "The guest goes on at the source" in out
    assert err.splitlines()[-1].endswith("another client did it: the migration is cancelled")


def cancellable(source):
    """Let migrations go on until they are cancelled."""
    told = threading.Event()
    source.replies["migrate_cancel"] = lambda _: told.set() or {}
    source.replies["query-migrate"] = lambda _: {"status": "cancelled"} if told.is_set() else ACTIVE


def test_one_that_does_not_converge_is_cancelled_at_its_deadline(capsys, source):
    cancellable(source)
    code, out, err = run(capsys, source, "--deadline", "200ms")
    assert code == 1
    assert ["remaining", "512", "MiB"] in [line.split() for line in out.splitlines()]
    assert "it has not converged within 200 ms: the migration is cancelled" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_migration_and_says_so(capsys, source, number):
    cancellable(source)
    go_on = source.replies["query-migrate"]

    def then_signal(arguments):
        if source.commands().count("query-migrate") == 3:
            os.kill(os.getpid(), number)
        return go_on(arguments)

    source.replies["query-migrate"] = then_signal
    handlers = {
        one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        code, _, err = run(capsys, source)
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
    assert code == 130
    assert source.commands().count("migrate_cancel") == 1
    assert err.splitlines()[-1] == "pysampler migrate: interrupted: the migration is cancelled"


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        (Exception("Postcopy migration in progress, cannot cancel."),
         "interrupted, but the migration goes on: Postcopy migration in progress, cannot cancel."),
        ({}, "interrupted: it was told to cancel, and is active after 10 s"),
    ],
)  # fmt: skip
def test_a_migration_that_cannot_be_cancelled_is_left_and_told(source, answer, left):
    source.replies |= {"query-migrate": [ACTIVE], "migrate_cancel": answer}
    with started(source) as process:
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1]
    assert process.returncode == 1
    assert err.splitlines()[-1] == f"pysampler migrate: {left}"


def test_a_second_signal_leaves_at_once(source):
    cancelling = threading.Event()
    source.replies |= {"query-migrate": [ACTIVE]}
    source.replies["migrate_cancel"] = lambda _: cancelling.set()  # and no answer
    with started(source) as process:
        process.send_signal(signal.SIGINT)
        assert cancelling.wait(20)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=5)[1]
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith("interrupted again: left; the migration may go on")


class started:  # noqa: N801 - used as a function
    """The verb in a process of its own, when it has begun to poll."""

    def __init__(self, source):
        polled = threading.Event()
        replies = source.replies["query-migrate"]
        source.replies["query-migrate"] = lambda _: polled.set() or replies[0]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pysampler", "migrate", "--from", source.address, *TO],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert polled.wait(30)

    def __enter__(self):
        return self.process

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"[" * 100_000 + b"\n", "does not answer with JSON objects"),
        (b"x" * (9 << 20), "it says too much"),
        ([], "does not answer query-migrate as QEMU does"),
        (b'{"event": "A"}\n' * 20_000, "it says too much"),
    ],
)
def test_a_hostile_source_is_one_line(capsys, source, reply, text):
    source.replies["query-migrate"] = lambda _: reply
    code, out, err = run(capsys, source)
    assert (code, out) == (1, "")
    assert text in one_line(err)


@pytest.mark.parametrize("value", [-1, 1e400, "many", None, True, [], {"a": 1}, 10**300])
def test_figures_that_are_none_do_no_harm(capsys, source, value):
    ram = dict.fromkeys(RAM, value)
    strange = {"total-time": value, "setup-time": value, "downtime": value, "ram": ram}
    source.replies["query-migrate"] = [{"status": "active", **strange},
                                       {"status": "completed", **strange}]  # fmt: skip
    code, out, err = run(capsys, source)
    assert code == 0
    assert "completed" in out
    assert "internal error" not in err


def test_a_source_that_is_silent_is_not_waited_for_without_end(capsys, source):
    source.greeting = None
    code, _, err = run(capsys, source)
    assert code == 1
    assert one_line(err).endswith("no answer within 10 s; QEMU serves one client at a time")


def test_a_source_that_goes_away_is_told(capsys, source):
    def end(_):
        raise OSError

    source.replies["query-migrate"] = end
    code, out, err = run(capsys, source)
    assert (code, out) == (1, "")
    assert one_line(err).endswith("it ends the session; the migration may go on")


def test_nobody_at_the_address_is_one_line(capsys, tmp_path):
    code = main(["migrate", "--from", f"unix:{tmp_path}/nobody", *TO])
    assert code == 1
    assert one_line(capsys.readouterr().err) == (
        f"QMP socket {tmp_path}/nobody: No such file or directory"
    )


MEMORY = """
fd = os.memfd_create("memory-backend-memfd")
os.ftruncate(fd, 64 << 20)
memory = mmap.mmap(fd, 64 << 20)
memory[: 32 << 20] = b"r" * (32 << 20)
"""


@pytest.fixture(scope="module")
def guest():
    with subject(MEMORY) as guest:
        yield guest


@pytest.mark.parametrize("converges", [True, False])
def test_a_record_is_what_predict_evaluate_reads(capsys, source, guest, tmp_path, converges):
    if not converges:
        cancellable(source)
    path = tmp_path / "records.jsonl"
    words = ("--measure", "200ms", "--pid", guest.pid, "-o", path, "--deadline", "300ms")
    code, _, err = run(capsys, source, *words)
    assert code == (0 if converges else 1)
    assert f"sampling process {guest.pid} for 200 ms" in err
    (migration,) = read_migrations([path.read_bytes()])
    assert migration.converged is converges
    assert migration.bandwidth == 1 << 27
    assert migration.downtime_limit_ms == 300
    assert migration.vectors["vector"].n_total_pages == 64 << 8
    if converges:
        assert migration.total_ms == 10_005
        assert migration.limit_ms == 300
    assert main(["predict", "--evaluate", str(path)]) == 0


def test_a_record_of_a_cancelled_migration_says_when(capsys, source, guest, tmp_path):
    source.replies["query-migrate"] = [ACTIVE, {"status": "cancelled"}]
    path = tmp_path / "records.jsonl"
    assert run(capsys, source, "--measure", "50ms", "--pid", guest.pid, "-o", path)[0] == 1
    (migration,) = read_migrations([path.read_bytes()])
    assert migration.limit_ms < 60_000  # and not the deadline of an hour


def test_a_record_is_kept_when_nobody_reads_the_summary(source, guest, tmp_path):
    path = tmp_path / "records.jsonl"
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pysampler", "migrate", "--from", source.address, *TO]
    words = ["--measure", "50ms", "--pid", str(guest.pid), "-o", str(path)]
    done = subprocess.run(
        [*command, *words], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(write)
    assert done.returncode == 1
    assert b"Error" not in done.stderr
    assert len(read_migrations([path.read_bytes()])) == 1


def test_records_are_appended(capsys, source, guest, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"already": "here"}\n')
    assert run(capsys, source, "--measure", "50ms", "--pid", guest.pid, "-o", path)[0] == 0
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {"already": "here"}
    assert second["config"]["uri"] == "unix"
    assert second["result"]["trace"][0][1:] == [1, 1 << 29, 1 << 29, 0, 838.8]


def test_a_downtime_limit_of_0_can_be_no_record(capsys, source, guest, tmp_path):
    source.replies["query-migrate-parameters"]["downtime-limit"] = 0
    path = tmp_path / "records.jsonl"
    code, out, err = run(capsys, source, "--measure", "50ms", "--pid", guest.pid, "-o", path)
    assert code == 1
    assert "completed" in out
    assert "no record of this migration can be had: downtime-limit: '0.0'" in err
    assert not path.exists()


def test_a_file_that_cannot_be_written_is_told_before_the_migration(capsys, source, tmp_path):
    code, _, err = run(capsys, source, "--measure", "50ms", "-o", tmp_path / "no" / "records")
    assert code == 1
    assert "No such file or directory" in one_line(err)
    assert source.asked == []


def test_the_process_of_a_unix_socket_is_known_and_that_of_tcp_is_asked_for(capsys, tmp_path):
    with fake_source(tmp_path, socket.AF_INET) as source:
        code, _, err = run(capsys, source, "--measure", "50ms")
    assert code == 2
    assert "does not tell its process; add --pid PID" in one_line(err)
