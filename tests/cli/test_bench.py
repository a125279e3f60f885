import json

import pytest

from pysampler.benchmark.hashing import HashBenchmark
from pysampler.cli import main, picture

SMALL = ["bench", "--memory", "128M", "--rounds", "2", "--threads", "2"]


def test_json_names_the_machine_and_prices_a_pass(capsys):
    assert main([*SMALL, "--json", "--guest-memory", "1G", "--sample-pages", "129"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"cpu", "kernel", "zlib", "simd"} <= report["machine"].keys()
    by_hash = {result["hash"] for result in report["results"]}
    assert {"read", "xxh32", "xxh64", "xxh3", "xxh3-128", "crc32-zlib", "memcmp"} <= by_hash
    assert all(result["ns-per-page"] > 0 for result in report["results"])
    assert report["pass"]["guest-memory"] == 1 << 30
    cost = next(c for c in report["pass"]["costs"] if c["hash"] == "xxh3" and not c["prefetch"])
    page = next(
        r
        for r in report["results"]
        if (r["hash"], r["pages"], r["backing"], r["prefetch"], r["access"], r["threads"])
        == ("xxh3", "cold", "4K", False, "mapping", 1)
    )
    assert cost["ms"] == pytest.approx(129 * page["ns-per-page"] / 1e6, rel=0.01, abs=1e-3)


def test_tables_and_a_plot_come_out(capsys, tmp_path):
    assert main([*SMALL, "--plot", str(tmp_path / "bench.svg")]) == 0
    printed = capsys.readouterr().out
    assert "crc32-zlib" in printed
    assert "largest sample-pages" in printed
    assert (tmp_path / "bench.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--memory", "1M"], "memory must be at least 128 MiB"),
        (["--rounds", "0"], "rounds must be between 1 and"),
        (["--threads", "x"], "threads must be a whole number"),
        (["--guest-memory", "4K"], "guest-memory must be at least 1 GiB"),
        (["--sample-pages", "5"], "sample-pages must be between 128 and 16384"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_memory_that_is_not_there_is_refused_as_by_the_other_verbs(capsys, tmp_path):
    too_much = (
        ["bench", "--memory", "100T"],
        ["guest", "--memory", "100T"],
        ["validate", "--sizes", "100T", "--store", str(tmp_path / "store")],
    )
    for words in too_much:
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"pysampler {words[0]}: ")
        assert error.count("\n") == 1


def test_a_plot_that_cannot_be_written_is_one_line(capsys):
    assert main([*SMALL, "--plot", "/nonexistent/x.svg"]) == 1
    assert "cannot write /nonexistent/x.svg" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.xyz", ""])
def test_a_plot_of_no_known_ending_is_refused_before_anything_is_timed(capsys, tmp_path, name):
    assert main([*SMALL, "--rounds", "10000", "--plot", f"{tmp_path}/{name}"]) == 2
    assert "ends in none of .svg, .png, .pdf" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_plot_that_was_interrupted_leaves_the_old_one(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(HashBenchmark, "run", interrupted)
    path = tmp_path / "x.svg"
    path.write_text("old")
    assert main([*SMALL, "--plot", str(path)]) == 130
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_plot_without_matplotlib_is_refused_before_anything_is_timed(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(picture, "find_spec", lambda _: None)
    assert main([*SMALL, "--rounds", "10000", "--plot", str(tmp_path / "x.svg")]) == 1
    assert "a plot needs matplotlib: pip install" in capsys.readouterr().err
