import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from older_store import OLDER_STORE, make_older_store
from simulated import generator, simulate

from pysampler.cli import main, validate
from pysampler.errors import SourceError
from pysampler.validation import report
from pysampler.validation import store as store_module
from pysampler.validation.store import Store


@pytest.fixture
def invented(monkeypatch, tmp_path):
    """The experiment replaced by simulated rows; what is printed, stored and refused is real."""

    def run(experiment, skip):
        skip("dirty-bitmap left out: invented")
        for size in experiment.sizes:
            for method in experiment.methods:
                yield from simulate(
                    generator(1), size=size, method=method, calc_times_ms=experiment.calc_times_ms
                )

    monkeypatch.setattr(validate, "run_experiment", run)
    return ["validate", "--store", str(tmp_path / "store.sqlite"), "--sizes", "64M"]


def test_a_run_prints_a_table_and_what_it_found(invented, capsys):
    assert main(invented) == 0
    printed = capsys.readouterr()
    assert "2000" in printed.out
    assert "fast, 64 MiB: off theory by" in printed.out
    assert "warning: dirty-bitmap left out: invented" in printed.err
    assert "stored as run 1" in printed.err


def test_json_lines_are_the_rows(invented, capsys):
    assert main([*invented, "--json", "--calc-times", "100ms,250ms", "--no-bitmap"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["method"], row["calc-time-ms"]) for row in rows] == [
        ("qemu", 100), ("qemu", 250), ("fast", 100), ("fast", 250),
    ]  # fmt: skip


def test_runs_are_compared(invented, capsys):
    main(invented)
    main([*invented, "--workload", "zipf"])
    capsys.readouterr()
    assert main([*invented[:3], "--compare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("64 MiB" in line for line in lines) == 6


def test_a_report_is_written(invented, capsys, tmp_path):
    assert main([*invented, "-o", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "index.html").exists()
    assert "index.html" in capsys.readouterr().err


def test_an_empty_store_has_nothing_to_compare(capsys, tmp_path):
    (tmp_path / "s.sqlite").touch()
    assert main(["validate", "--store", str(tmp_path / "s.sqlite"), "--compare"]) == 1
    assert "the store is empty" in capsys.readouterr().err


def test_a_store_that_is_not_there_is_not_made_by_comparing(capsys, tmp_path):
    assert main(["validate", "--store", str(tmp_path / "s.sqlite"), "--compare"]) == 1
    assert "there is no store" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["matplotlib", "jinja2"])
def test_a_missing_library_is_told_before_anything_is_measured(
    capsys, tmp_path, monkeypatch, library
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == library else name)
    assert main(["validate", "--store", "s.sqlite", "--sizes", "64M", "-o", "r"]) == 1
    assert f"needs {library}: pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


ENDS = [
    (KeyboardInterrupt(), "interrupted"),
    (SourceError("the guest did not get ready"), "the guest did not get ready"),
]


@pytest.mark.parametrize(("end", "why"), ENDS)
@pytest.mark.parametrize("n", [1, 2, 9, 13])
def test_what_was_measured_before_it_ended_is_kept(
    invented, capsys, tmp_path, monkeypatch, end, why, n
):
    whole, closed = validate.run_experiment, []

    def run(experiment, skip):
        try:
            for i, row in enumerate(whole(experiment, skip)):
                if i == n:
                    raise end
                yield row
        finally:
            closed.append(True)

    monkeypatch.setattr(validate, "run_experiment", run)
    report_folder = tmp_path / "report"
    assert main([*invented, "-o", str(report_folder)]) == 3
    out, err = capsys.readouterr()
    assert "MiB/s of a uniform writer" in out
    assert err.endswith(f"pysampler validate: {why}; {n} of 27 rows were measured\n")
    assert (report_folder / "index.html").exists()
    assert closed == [True]
    assert main([*invented, "--json"]) == 3
    assert len(capsys.readouterr().out.splitlines()) == n
    assert main([*invented[:3], "--compare"]) == 0
    with closing(Store(invented[2])) as store:
        assert [len(stored.rows) for stored in store.last(9)] == [n, n]


@pytest.mark.parametrize(("end", "why"), ENDS)
def test_without_a_row_nothing_is_kept(invented, capsys, monkeypatch, end, why):
    def run(*_):
        raise end
        yield

    monkeypatch.setattr(validate, "run_experiment", run)
    assert main(invented) == (130 if isinstance(end, KeyboardInterrupt) else 1)
    assert capsys.readouterr() == ("", f"pysampler validate: {why}\n")
    with closing(Store(invented[2])) as store:
        assert store.last(9) == []


@contextmanager
def validating(tmp_path, *arguments):
    """A `pysampler validate` whose guest runs; yields it and the guest's pid."""
    command = [sys.executable, "-m", "pysampler", "validate", "--sizes", "64M", "--repeat", "99"]
    command += ["--store", str(tmp_path / "s.sqlite"), *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not (guest := children.read_text().split()):
                assert process.poll() is None
                time.sleep(0.01)
            # Until it runs, has said so, and is looked at.
            while "pysampler-truth" not in Path(f"/proc/{process.pid}/maps").read_text():
                assert process.poll() is None
                time.sleep(0.01)
            yield process, int(guest[0])
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_guest_too(tmp_path, number):
    with validating(tmp_path, "--calc-times", "60s") as (process, guest):
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "pysampler validate: interrupted\n")
    assert not Path(f"/proc/{guest}").exists()


def test_a_signal_in_the_middle_keeps_the_rows_before(tmp_path):
    store = tmp_path / "s.sqlite"
    words = ("--calc-times", "50ms", "--json", "--no-bitmap")
    with validating(tmp_path, *words) as (process, guest):
        time.sleep(2)  # nothing tells from outside that a row is done; each takes 0.3 s
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    n = len(out.splitlines())
    assert process.returncode == 3
    assert error.endswith(f"pysampler validate: interrupted; {n} of 198 rows were measured\n")
    assert not Path(f"/proc/{guest}").exists()
    with closing(Store(str(store))) as stored:
        assert [len(run.rows) for run in stored.last(9)] == [n]


def test_a_guest_does_not_outlive_even_a_killed_parent(tmp_path):
    with validating(tmp_path, "--calc-times", "60s") as (process, guest):
        watched = os.pidfd_open(guest)
        process.kill()
        try:
            assert select.select([watched], [], [], 30)[0], "the guest still runs"
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(watched, signal.SIGKILL)
            os.close(watched)


def test_a_guest_whose_parent_is_gone_before_it_is_bound_does_not_start():
    done = subprocess.run(
        [sys.executable, "-m", "pysampler.bound_guest", str(os.getppid()), "guest"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--sizes", "1M"], 2, "sizes must be whole MiB of 64 MiB or more"),
        (["--sizes", "1G,x"], 2, "sizes: 'x' is not a size"),
        (["--sizes", "900T"], 1, "a guest of 900 TiB takes"),
        (["--calc-times", "10ms"], 2, "from 50 ms to 60 s"),
        (["--calc-times", "3s..4s"], 2, "none of"),
        (["--profile", "slow"], 2, "profile must be of qemu, qemu-7, fast"),
        (["--sample-pages", "64"], 2, "sample-pages must be between 128 and 16384"),
        (["--repeat", "0"], 2, "repeat must be between 1 and"),
        (["--wps", "fast"], 2, "wps must be a whole number"),
        (["--sizes", "64M", "-o", "/proc/report"], 1, "cannot write /proc/report"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, tmp_path, arguments, code, message):
    assert main(["validate", "--store", str(tmp_path / "s.sqlite"), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_store_that_is_full_takes_no_row(tmp_path):
    program = (
        "import resource, signal, sys\n"
        "from simulated import generator, simulate\n"
        "from pysampler.cli import main, validate\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "def run(experiment, skip):\n"
        "    yield from simulate(generator(1), size=64 << 20, method='qemu')\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "validate.run_experiment = run\n"
        f"sys.exit(main(['validate', '--store', {str(tmp_path / 's.sqlite')!r}, '--sizes', '64M',"
        " '--json']))\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 9
    assert done.stderr.count("\n") == 1
    assert "s.sqlite" in done.stderr


def test_rows_that_nobody_reads_are_stored_all_the_same(invented, monkeypatch):
    def put(text):
        raise BrokenPipeError(text)

    monkeypatch.setattr(validate, "put", put)
    monkeypatch.setattr("pysampler.cli.discard_stdout", lambda: None)
    assert main([*invented, "--json"]) == 1
    with closing(Store(invented[2])) as store:
        assert [len(run.rows) for run in store.last(9)] == [27]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rows SET size = 'large'", "UPDATE rows SET method = x'ff'", "DELETE FROM rows",
        "UPDATE rows SET workload = CAST(x'ff' AS TEXT)", "UPDATE rows SET n_dirty_pages = -1",
        "UPDATE runs SET started = 'yesterday'", "UPDATE rows SET seconds = 0",
        "UPDATE runs SET started = 1e300", "UPDATE rows SET idle_wps = 1e999",
        "ALTER TABLE rows RENAME COLUMN method TO other",
        "ALTER TABLE runs RENAME COLUMN cpu TO other", "ALTER TABLE rows RENAME TO other",
    ],
)  # fmt: skip
def test_a_damaged_store_is_compared_in_one_line(invented, capsys, damage):
    main([*invented, "--calc-times", "100ms", "--profile", "fast"])
    with closing(sqlite3.connect(invented[2])) as connection:
        connection.execute(damage)
        connection.commit()
    capsys.readouterr()
    assert main([*invented[:3], "--compare"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "internal error" not in err


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE rows SET row = '[]'", "UPDATE rows SET row = 'x'", "DELETE FROM rows",
        "UPDATE runs SET machine = '[1]'", "UPDATE runs SET started = 'yesterday'",
        "UPDATE rows SET row = json_set(row, '$.size', 'large')",
        "UPDATE rows SET row = json_set(row, '$.seconds', 0)",
        "UPDATE runs SET started = 1e300", "UPDATE rows SET row = json_remove(row, '$.method')",
    ],
)  # fmt: skip
def test_a_damaged_older_store_is_compared_in_one_line_and_takes_no_row(invented, capsys, damage):
    path = Path(invented[2])
    make_older_store(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(damage)
        connection.commit()
    before = path.read_bytes()
    assert main([*invented[:3], "--compare"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "internal error" not in err
    assert main([*invented, "--json", "--no-bitmap"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 18
    assert sum("sqlite" in line for line in err.splitlines()) == 1
    assert path.read_bytes() == before


def test_an_older_store_is_compared_as_it_was(invented, capsys):
    path = Path(invented[2])
    make_older_store(path)
    before = path.read_bytes()
    expected = OLDER_STORE.with_suffix(".txt").read_text()
    assert main([*invented[:3], "--compare"]) == 0
    assert capsys.readouterr().out == expected
    assert path.read_bytes() == before  # comparing changes nothing
    with closing(Store(str(path))):
        assert path.read_bytes() != before
    assert main([*invented[:3], "--compare"]) == 0
    assert capsys.readouterr().out == expected


def _lock(path):
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


STORES = {
    "garbage": lambda path: path.write_bytes(b"no database " * 500),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "other version": lambda path: sqlite3.connect(path).execute("PRAGMA user_version = 9"),
    "other schema": lambda path: sqlite3.connect(path).executescript(
        "DROP TABLE rows; CREATE TABLE rows (other)"
    ),
    "locked": _lock,
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", STORES)
def test_a_store_that_does_not_work_takes_no_row(invented, capsys, monkeypatch, kind):
    monkeypatch.setattr(store_module, "PATIENCE_S", 0.01)
    path = Path(invented[2])
    with closing(Store(str(path))):
        pass
    held = STORES[kind](path)
    assert main([*invented, "--json", "--no-bitmap"]) == 1
    if kind == "locked":
        held.close()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 18
    assert sum("sqlite" in line for line in err.splitlines()) == 1


def test_a_store_that_does_not_work_takes_no_table_and_no_report(invented, capsys, tmp_path):
    Path(invented[2]).write_bytes(b"no database " * 500)
    folder = tmp_path / "report"
    assert main([*invented, "--calc-times", "100ms,250ms", "-o", str(folder)]) == 1
    assert "MiB/s of a uniform writer" in capsys.readouterr().out
    assert (folder / "index.html").exists()
