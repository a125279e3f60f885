import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from simulated import generator, simulate

from pysampler.cli import main, validate
from pysampler.validation import report


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


@pytest.mark.parametrize(
    ("missing", "more"), [("scipy", []), ("scipy", ["-o", "r"]), ("matplotlib", ["-o", "r"])]
)
def test_a_missing_library_is_told_before_anything_is_measured(
    capsys, tmp_path, monkeypatch, missing, more
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == missing else name)
    assert main(["validate", "--store", "s.sqlite", "--sizes", "64M", *more]) == 1
    assert f"needs {missing}: pip install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_guest_too(tmp_path, number):
    command = [sys.executable, "-m", "pysampler", "validate", "--sizes", "64M", "--repeat", "99"]
    command += ["--store", str(tmp_path / "s.sqlite")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (guest := children.read_text().split()):
        assert process.poll() is None
        time.sleep(0.01)
    while len(list(Path(f"/proc/{guest[0]}/task").iterdir())) == 1:  # until it runs a vCPU
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "pysampler validate: interrupted\n")
    assert not Path(f"/proc/{guest[0]}").exists()


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
