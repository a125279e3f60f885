"""The verbs predict and advise: what they print, and what they refuse in one line."""

import io
import json
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from pysampler import Measurement, Precopy, UsageError, predict
from pysampler.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"
VECTOR = GOLDEN / "vector-32gib-memcached.json"
QUICK = ("--bandwidth", "10Gbps", "--downtime", "300ms")


def run(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def edited(tmp_path, **members):
    vector = json.loads(VECTOR.read_text())
    vector.update({key.replace("_", "-"): value for key, value in members.items()})
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(vector))
    return path


def test_the_published_grid_is_printed_cell_for_cell(capsys):
    code, out, err = run(capsys, "predict", "--model", "published", "--grid", "published", VECTOR)
    assert code == 0
    assert out == (GOLDEN / "prediction-32gib-memcached.txt").read_text()
    assert "2^30" in err


def test_a_vector_is_read_from_stdin(capsys, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(VECTOR.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, out, _ = run(capsys, "predict", *QUICK)
    assert code == 0
    assert "10 Gbps" in out
    assert "300 ms" in out


@pytest.mark.parametrize("model", ["qemu", "published"])
def test_json_is_one_object_with_a_cell_for_each_pair(capsys, model):
    words = ("--bandwidth", "1Gibps,419430400,400MiB/s", "--downtime", "100ms,unlimited")
    code, out, _ = run(capsys, "predict", VECTOR, "--json", "--model", model, *words)
    found = json.loads(out)
    assert code == 0
    assert found["model"] == model
    pairs = [(c["bandwidth-bytes-per-s"], c["downtime-limit-ms"]) for c in found["cells"]]
    rates = [2**27, 419_430_400, 419_430_400]
    assert pairs == [(rate, limit) for rate in rates for limit in (100, None)]
    keys = {
        "total-ms",
        "total-ms-interval",
        "downtime-ms",
        "sent-bytes",
        "iterations",
        "p-converge",
    }
    for cell in found["cells"]:
        assert keys <= cell.keys()
        assert (cell["total-ms"] is None) == (cell["p-converge"] < 0.5)
    assert found["cells"][0]["total-ms"] is None
    assert found["cells"][1]["total-ms"] > 0


def test_the_fit_is_told_on_stderr(capsys):
    _, _, err = run(capsys, "predict", VECTOR, *QUICK)
    assert err.startswith("pysampler predict: curve: ")
    assert "chi-square" in err


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_plot_is_drawn(capsys, tmp_path, ending):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    path = tmp_path / f"plot.{ending}"
    assert run(capsys, "predict", VECTOR, *QUICK, "--plot", path)[0] == 0
    head = path.read_bytes()[:8]
    assert head.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])


def test_a_vector_that_cannot_be_drawn_is_told_before_the_table(capsys, tmp_path):
    """The published model takes a first period of 0; the curve in the picture cannot."""
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    vector = json.loads(VECTOR.read_text())
    vector["periods"][0] = 0
    path = tmp_path / "vector"
    path.write_text(json.dumps(vector))
    words = ("predict", path, "--model", "published", "--bandwidth", "1Gbps", "--downtime", "1s")
    assert run(capsys, *words)[0] == 0
    code, out, err = run(capsys, *words, "--plot", tmp_path / "x.svg")
    assert (code, out) == (1, "")
    assert err.startswith(f"pysampler predict: {path}: periods: each must come after")
    assert not (tmp_path / "x.svg").exists()


def test_migrations_that_neither_end_nor_sync_are_drawn_without_a_warning(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    words = ("--bandwidth", "1", "--downtime", "300ms", "--plot", tmp_path / "x.png")
    code, _, err = run(capsys, "predict", VECTOR, *words)
    assert (code, err.count("\n")) == (0, 1)


@pytest.mark.statistics
@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_prediction_gives_the_same_picture(capsys, tmp_path, ending):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        run(capsys, "predict", VECTOR, *QUICK, "--plot", path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("nowhere/x.png", 1, "cannot write {}: No such file or directory"),
        ("a-file/x.png", 1, "cannot write {}: Not a directory"),
        ("folder.png", 1, "cannot write {}: is a directory"),
        ("x.bmp", 2, "plot: '{}' ends in none of .svg, .png, .pdf"),
        ("", 2, "ends in none of .svg, .png, .pdf"),
    ],
)
def test_a_picture_that_cannot_be_is_refused_before_the_vector_is_read(
    capsys, tmp_path, name, code, message
):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a-file").touch()
    path = f"{tmp_path}/{name}"
    found, out, err = run(capsys, "predict", tmp_path / "no-vector", *QUICK, "--plot", path)
    assert (found, out) == (code, "")
    assert err.startswith("pysampler predict: ")
    assert err.endswith(message.format(path) + "\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-file", "folder.png"]


def test_a_picture_is_there_whole_or_not_at_all(capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    path = tmp_path / "x.png"
    path.write_text("the old one")
    code, _, err = run(capsys, "predict", tmp_path / "no-vector", *QUICK, "--plot", path)
    assert (code, path.read_text()) == (1, "the old one")

    def replace(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(os, "replace", replace)
    code, out, err = run(capsys, "predict", VECTOR, *QUICK, "--plot", path)
    assert code == 1
    assert "300 ms" in out
    assert err.endswith(f"cannot write {path}: Device or resource busy\n")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["the old one"]


def test_a_picture_of_a_linked_name_goes_where_the_link_leads(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="the plot extra is not installed")
    (tmp_path / "x.png").symlink_to("target.png")
    assert run(capsys, "predict", VECTOR, *QUICK, "--plot", tmp_path / "x.png")[0] == 0
    assert (tmp_path / "target.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "x.png").is_symlink()


@pytest.mark.statistics
def test_real_migrations_are_scored_for_both_models_and_all_vectors(capsys):
    code, out, _ = run(
        capsys, "predict", "--evaluate", GOLDEN / "migrations-qemu10.jsonl", "--json"
    )
    assert code == 0
    scores = json.loads(out)
    assert [(s["model"], s["vector"]) for s in scores] == [
        (model, vector) for vector in ("vector", "vector-512") for model in ("qemu", "published")
    ]
    assert {s["migrations"] for s in scores} == {44}


@pytest.fixture
def six(tmp_path):
    """A file of the six migrations of one real guest."""
    records = (GOLDEN / "migrations-qemu10.jsonl").read_text().splitlines()[24:30]
    path = tmp_path / "six.jsonl"
    path.write_text("\n".join(records))
    return path


def test_the_scores_are_a_table_for_people(capsys, six):
    _, out, _ = run(capsys, "predict", "--evaluate", six)
    assert "median" in out
    assert "bad, published with vector" in out


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"n_dirty_pages": [1, 2]}, "n-dirty-pages has 2 values, but periods has 22"),
        ({"n_sampled_pages": -5}, "n-sampled-pages: -5 is not between"),
        ({"n_total_pages": 10**30}, "n-total-pages: 1"),
        ({"n_zero_pages": float("nan")}, "n-zero-pages: 'nan' is not a whole number"),
        ({"page_size": 1}, "page-size"),
        ({"status": "measuring"}, "status: 'measuring', not 'measured'; --unfinished"),
        ({"status": "unstarted"}, "status: 'unstarted'"),
        ({"status": "finished"}, "status: 'finished' is not one of"),
        ({"periods": [5] * 22}, "periods: each must come after the one before it"),
        (
            {"n_sampled_pages": 0, "n_dirty_pages": [0] * 22, "n_zero_pages": 0},
            "n-sampled-pages: 0",
        ),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "advise"])
def test_a_bad_vector_is_refused_in_one_line_that_names_the_key(
    capsys, tmp_path, verb, members, message
):
    path = edited(tmp_path, **members)
    code, out, err = run(capsys, verb, path, *QUICK)
    assert (code, out) == (1, "")
    assert err.startswith(f"pysampler {verb}: {path}: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "nonsense", "[1, 2]", "{", "null", '"text"', "[" * 100_000])
def test_what_is_no_vector_is_refused_in_one_line(capsys, tmp_path, text):
    path = tmp_path / "text"
    path.write_text(text)
    code, out, err = run(capsys, "predict", path, *QUICK)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1


def test_an_unfinished_vector_is_used_on_request(capsys, tmp_path):
    path = edited(tmp_path, status="measuring")
    assert run(capsys, "predict", path, *QUICK, "--unfinished")[0] == 0


def test_a_file_of_a_gigabyte_is_refused_without_being_read(capsys, tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    code, _, err = run(capsys, "predict", path, *QUICK)
    assert code == 1
    assert "longer than 4 MiB, so not a vector" in err


def test_a_stream_without_an_end_is_refused(capsys):
    code, _, err = run(capsys, "predict", "/dev/zero", *QUICK)
    assert code == 1
    assert "longer than 4 MiB" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--bandwidth", "10Gbit"), "bandwidth: '10Gbit' is not a rate"),
        (("--bandwidth", "1Gbps,"), "bandwidth: '' is not a rate"),
        (("--bandwidth", "0"), "bandwidth: '0' is not between"),
        (("--bandwidth=-1Gbps",), "is not a rate"),
        (("--bandwidth", "nan"), "bandwidth: 'nan' is not a rate"),
        (("--bandwidth", "1e9"), "bandwidth: '1e9' is not a rate"),
        (("--bandwidth", "9" * 30), "bandwidth: '9999"),
        (("--downtime", "300"), "downtime: '300' has no unit"),
        (("--downtime", "300fortnights"), "downtime: "),
        (("--downtime", "0ms"), "downtime: "),
        (("--link", "fast"), "link: 'fast' is not a rate"),
        (("--deadline", "soon"), "deadline: "),
        (("--deadline", ""), "deadline: '' is not a duration"),
        (("--latency", "1ly"), "latency: "),
        (("--logging-cost", "x"), "logging-cost: 'x'"),
        (("--zero-page-cost", "1us"), "zero-page-cost: '1us' is not a number of us"),
        (("--zero-page-cost", "-1"), "zero-page-cost: '-1' is not between 0 and 1000000 us"),
        (("--logging-cost", "nan"), "logging-cost: 'nan' is not between 0 and 1000000 us"),
        (("--logging-cost", "-1"), "logging-cost: '-1' is not between 0 and 1000000 us"),
        (("--logging-cost", "1e400"), "logging-cost: '1e400' is not between"),
        (("--deadline", "0s"), "deadline: '0s' is not between 1 and 100000000 ms"),
        (("--deadline", "99999999h"), "deadline: '99999999h' is not between"),
        (("--latency", "50"), "latency: '50' is not a duration; write 200us"),
        (("--latency", "1001s"), "latency: '1001s' is not between 0 and 1000000 ms"),
        (("--link", "1bps"), "link: 0.125 is not between 1 and"),
        (("--grid", "published", "--bandwidth", "1Gbps"), "--grid published has its own"),
        (("--plot", "picture.bmp"), "plot: 'picture.bmp' ends in none of"),
    ],
)
def test_unknown_units_and_wrong_options_are_usage_errors(capsys, words, message):
    code, out, err = run(capsys, "predict", VECTOR, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_is_named(capsys, tmp_path):
    for words in ((tmp_path / "none",), ("--evaluate", tmp_path / "none")):
        code, _, err = run(capsys, "predict", *words)
        assert code == 1
        assert f"{tmp_path / 'none'}: No such file" in err


INPUTS = [("predict",), ("predict", "--json"), ("advise", *QUICK), ("advise", "--quick", *QUICK)]


@pytest.mark.parametrize("words", [*INPUTS, ("predict", "--evaluate")])
def test_what_cannot_be_read_is_one_line(capsys, tmp_path, words):
    for name, message in (
        (tmp_path, f"{tmp_path}: Is a directory"),
        (tmp_path / "none", f"{tmp_path / 'none'}: No such file or directory"),
        ("", "'': No such file or directory"),
        ("/proc/self/mem", "/proc/self/mem: Input/output error"),
    ):
        words_and_name = (*words, name)
        assert run(capsys, *words_and_name) == (1, "", f"pysampler {words[0]}: {message}\n")


class Terminal(io.TextIOWrapper):
    """A stdin that is one."""

    def isatty(self):
        return True


@pytest.mark.parametrize("words", INPUTS)
def test_a_stdin_without_a_vector_is_one_line(capsys, monkeypatch, tmp_path, words):
    for stdin, message in (
        (Terminal(io.BytesIO()), "nothing on stdin: name a file, or pipe one in"),
        (io.TextIOWrapper(io.BytesIO()), "stdin: empty: there is no vector in it"),
        (io.TextIOWrapper(io.BufferedWriter(io.FileIO(tmp_path / "x", "w"))), "stdin: read"),
    ):
        with stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            for name in ((), ("-",)):
                expected = f"pysampler {words[0]}: {message}\n"
                assert run(capsys, *words, *name) == (1, "", expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "no migrations in it"),
        ("{}", "line 1: config: missing"),
        ("nonsense", "line 1: not JSON"),
        ('{"config": {}, "result": {"query-migrate": {}}}', "line 1: converged: missing"),
        (
            '{"config": {}, "result": {"query-migrate": {}, "converged": true}}',
            "line 1: vector: missing",
        ),
    ],
)
def test_a_file_of_no_migrations_is_refused_by_line_and_key(capsys, tmp_path, line, message):
    path = tmp_path / "migrations"
    path.write_text(line + "\n")
    code, _, err = run(capsys, "predict", "--evaluate", path)
    assert code == 1
    assert message in err


def test_zero_pages_take_the_time_that_is_said(capsys):
    words = ("predict", VECTOR, "--bandwidth", "5GB/s", "--downtime", "1s", "--json")
    times = [
        json.loads(run(capsys, *words, "--zero-page-cost", us)[1])["cells"][0]["total-ms"]
        for us in ("1", "2")
    ]
    # 20 GiB of them in each pass that reads them, one.
    assert times[1] - times[0] == pytest.approx(1e-3 * 10060 / 16392 * 8_388_608, rel=0.2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--bandwidth", "10Gbps"), True),
        (("--bandwidth", "10Gbps", "--zero-page-cost", "0"), False),
        (("--bandwidth", "10Gbps", "--model", "published"), False),
        (("--bandwidth", "10Gbps", "--zero-page-detection", "none"), False),
        (("--bandwidth", "200Mbps"), False),  # 10 minutes; sending 9 bytes takes longer
        (("--bandwidth", "1kbps"), False),  # does not converge
    ],
)
def test_it_is_said_where_reading_zero_pages_would_tell(capsys, words, told):
    code, _, err = run(capsys, "predict", VECTOR, "--downtime", "unlimited", *words)
    assert code == 0
    line = (
        "pysampler predict: the time to read 19.6 GiB of zero pages is not in these totals;"
        " --zero-page-cost 0.3 would add up to 1.51 s\n"
    )
    assert (line in err) == told


def test_a_total_time_of_next_to_nothing_is_refused(capsys, tmp_path):
    record = json.loads((GOLDEN / "migrations-qemu10.jsonl").read_text().splitlines()[0])
    record["result"]["query-migrate"]["total-time"] = 1e-320
    path = tmp_path / "migrations"
    path.write_text(json.dumps(record))
    code, _, err = run(capsys, "predict", "--evaluate", path)
    assert code == 1
    assert "line 1: total-time: 1e-320 is not between 1 and" in err


def test_what_evaluating_finds_wrong_has_its_line(capsys, tmp_path):
    records = [
        json.loads(line) for line in (GOLDEN / "migrations-qemu10.jsonl").read_text().splitlines()
    ][:2]
    vector = records[1]["vector-512"]
    vector["periods"], vector["n-dirty-pages"] = vector["periods"][:1], vector["n-dirty-pages"][:1]
    path = tmp_path / "migrations"
    path.write_text("\n".join(map(json.dumps, records)))
    code, out, err = run(capsys, "predict", "--evaluate", path)
    assert (code, out) == (1, "")
    assert err == (
        f"pysampler predict: {path}: line 2: vector-512: periods: 1 of them;"
        " a line needs at least two\n"
    )


@pytest.mark.parametrize("key", ["downtime", "downtime-bytes"])
def test_an_absurd_last_pass_tells_nothing_of_the_link(capsys, tmp_path, key):
    record = json.loads((GOLDEN / "migrations-qemu10.jsonl").read_text().splitlines()[0])
    reply = record["result"]["query-migrate"]
    (reply if key == "downtime" else reply["ram"])[key] = 10**400
    path = tmp_path / "migrations"
    path.write_text(json.dumps(record))
    assert run(capsys, "predict", "--evaluate", path)[0] == 0


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("lines", "words", "told"),
    [
        (slice(12), (), "link 19440 Mbps, zero page 0.54 us"),
        (
            slice(3),
            ("--link", "10Gbps", "--zero-page-cost", "1"),
            "link 10 Gbps, zero page 1 us",
        ),
        (slice(1), (), "link that of the bandwidth, zero page 0 us"),  # there are no others
    ],
)
def test_evaluating_says_what_it_took_of_the_host(capsys, tmp_path, lines, words, told):
    path = tmp_path / "migrations"
    records = (GOLDEN / "migrations-qemu10.jsonl").read_text().splitlines()[lines]
    path.write_text("\n".join(records))
    code, _, err = run(capsys, "predict", "--evaluate", path, "--json", *words)
    assert (code, err) == (0, f"pysampler predict: of the host: {told}\n")


def test_multifd_of_the_option_is_that_of_every_record(capsys, six):
    words = ("predict", "--json", "--evaluate", six)
    assert run(capsys, *words)[1] != run(capsys, *words, "--multifd")[1]


def test_migrations_come_from_stdin_too(capsys, monkeypatch, six):
    with six.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        found = run(capsys, "predict", "--evaluate", "-", "--json")
    assert found == run(capsys, "predict", "--evaluate", six, "--json")
    assert len(json.loads(found[1])) == 4


@pytest.mark.statistics
def test_advice_is_a_table_and_one_json_object(capsys):
    words = ("advise", VECTOR, "--bandwidth", "100Mbps", "--downtime", "300ms")
    code, out, _ = run(capsys, *words)
    assert code == 0
    assert "auto-converge must reach" in out
    found = json.loads(run(capsys, *words, "--json")[1])
    assert found["p-converge"] == 0
    remedies = [advice["remedy"] for advice in found["advice"]]
    assert remedies == ["bandwidth", "downtime-limit", "throttle", "dirty-limit", "post-copy"]


def test_the_quick_rule_needs_one_short_measurement_only(capsys, tmp_path):
    reply = tmp_path / "reply.json"
    reply.write_text(
        '{"status": "measured", "dirty-rate": 98, "mode": "page-sampling", '
        '"calc-time": 300, "calc-time-unit": "millisecond"}'
    )
    code, out, _ = run(capsys, "advise", "--quick", reply, *QUICK)
    assert code == 0
    assert out.startswith("converges: 29.5 MiB get dirty in 300 ms, less than the 357.6 MiB")
    found = json.loads(run(capsys, "advise", "--quick", reply, *QUICK, "--json")[1])
    assert found["converges"] is True


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ({"dirty-rate": -1, "calc-time": 300}, "dirty-rate: '-1'"),
        ({"dirty-rate": 1, "calc-time": 300, "calc-time-unit": "day"}, "calc-time-unit: 'day'"),
        ({"dirty-rate": 1, "calc-time": 300, "status": "measuring"}, "status: 'measuring'"),
        ({"dirty-rate": 1, "calc-time": 5}, "calc-time: 5000 ms is not the downtime-limit"),
    ],
)
def test_a_bad_reply_is_refused_by_key(capsys, tmp_path, reply, message):
    path = tmp_path / "reply.json"
    path.write_text(json.dumps(reply))
    code, _, err = run(capsys, "advise", "--quick", path, *QUICK)
    assert code == 1
    assert message in err


@pytest.mark.parametrize("verb", ["predict", "advise"])
def test_a_reply_of_qmp_counts_as_the_vector_in_it(capsys, tmp_path, verb):
    path = tmp_path / "reply.json"
    path.write_text(f'{{"return": {VECTOR.read_text()}}}')
    assert run(capsys, verb, path, *QUICK, "--json") == run(capsys, verb, VECTOR, *QUICK, "--json")


def test_the_quick_rule_takes_replies_of_qmp_with_and_without_a_vector(capsys, tmp_path):
    path = tmp_path / "reply.json"
    words = ("advise", "--quick", path, "--bandwidth", "10Gbps", "--downtime", "125ms")
    rate = '{"status": "measured", "dirty-rate": 98, "calc-time": 125, "calc-time-unit": "millisecond"}'
    for content in (VECTOR.read_text(), rate):
        path.write_text(content)
        bare = run(capsys, *words)
        path.write_text(f'{{"return": {content}, "id": "x"}}')
        assert run(capsys, *words) == bare
        assert bare[0] == 0


@pytest.mark.parametrize("content", ["{}", "[]", "null", "1", '"text"', '{"status": "measured"}'])
def test_a_reply_of_qmp_with_something_else_is_refused_in_one_line(capsys, tmp_path, content):
    path = tmp_path / "reply.json"
    path.write_text(f'{{"return": {content}}}')
    for words in (("predict",), ("advise",), ("advise", "--quick")):
        code, out, err = run(capsys, *words, path, *QUICK)
        assert (code, out) == (1, "")
        assert err.startswith(f"pysampler {words[0]}: {path}: ")
        assert err.count("\n") == 1


def with_codecs(tmp_path, codecs):
    return edited(tmp_path, x_pysampler={"compression": {"codecs": codecs}})


def test_a_codec_of_a_strange_name_does_not_reach_the_terminal(capsys, tmp_path):
    figures = {"all": {"ratio-mean": 0.5, "bytes-per-s": 1e9}}
    code, out, _ = run(capsys, "advise", with_codecs(tmp_path, {"\x1b[2J": figures}), *QUICK)
    assert code == 0
    assert "\x1b" not in out
    assert "compression-\\x1b[2J" in out


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        ({"x": {"all": {"ratio-mean": 1e-300, "bytes-per-s": 1e9}}}, "codecs.x: no ratio"),
        ({"x": {"all": {"ratio-mean": 0.5, "bytes-per-s": 1e-9}}}, "codecs.x: no ratio"),
        ({str(i): {} for i in range(17)}, "codecs: more than 16"),
    ],
)
def test_codecs_that_cannot_be_are_refused_by_key(capsys, tmp_path, codecs, message):
    code, out, err = run(capsys, "advise", with_codecs(tmp_path, codecs), *QUICK)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_reply_of_qemu_is_told_from_a_vector(capsys, tmp_path):
    path = tmp_path / "reply.json"
    path.write_text('{"status": "measured", "dirty-rate": 98, "calc-time": 1}')
    code, _, err = run(capsys, "predict", path)
    assert code == 1
    assert "`pysampler advise --quick`" in err


@pytest.mark.parametrize("option", ["--plot=x.png", "--bandwidth=1Gbps", "--model=qemu"])
def test_evaluating_takes_no_option_that_it_would_ignore(capsys, option):
    code, _, err = run(capsys, "predict", "--evaluate", GOLDEN / "migrations-qemu10.jsonl", option)
    assert code == 2
    assert f"not with {option.partition('=')[0]}" in err


@pytest.mark.parametrize("name", [VECTOR, "-", "no-such-file"])
def test_evaluating_takes_no_vector_that_it_would_ignore(capsys, name):
    code, out, err = run(
        capsys, "predict", name, "--evaluate", GOLDEN / "migrations-qemu10.jsonl", "--json"
    )
    assert (code, out) == (2, "")
    assert err == (
        f"pysampler predict: --evaluate brings its own vectors; leave out {str(name)!r}\n"
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("limit-s", 1e-9, "1e-09 is not between 0.001 and 100000"),
        ("limit-s", 2e5, "200000.0 is not between 0.001 and 100000"),
        ("downtime-limit", 2e9, "2000000000.0 is not between 0 and 1e+09"),
        ("max-bandwidth", 2e15, "2000000000000000.0 is not between 0 and 1e+15"),
        ("max-bandwidth", 10**400, "is not between 0 and 1e+15"),
        ("max-bandwidth", math.nan, "'nan' is not a positive number"),
        ("max-bandwidth", True, "'True' is not a positive number"),
    ],
)
def test_evaluating_names_line_and_key_of_what_no_migration_has(
    capsys, tmp_path, key, value, message
):
    record = json.loads((GOLDEN / "migrations-qemu10.jsonl").read_text().splitlines()[0])
    record["config"][key] = value
    path = tmp_path / "migrations"
    path.write_text(json.dumps(record))
    code, out, err = run(capsys, "predict", "--evaluate", path)
    assert (code, out) == (1, "")
    assert err.startswith(f"pysampler predict: {path}: line 1: {key}: ")
    assert message in err


def test_evaluating_names_the_file_of_a_vector_that_cannot_be_used(capsys, tmp_path):
    record = json.loads((GOLDEN / "migrations-qemu10.jsonl").read_text().splitlines()[0])
    record["vector"]["status"] = "measuring"
    path = tmp_path / "migrations"
    path.write_text(json.dumps(record))
    code, _, err = run(capsys, "predict", "--evaluate", path)
    assert code == 1
    assert f"{path}: line 1: vector: status: 'measuring'" in err
    assert run(capsys, "predict", "--evaluate", path, "--unfinished")[0] == 0


def test_numbers_of_numpy_are_numbers():
    measurement = Measurement.from_json(VECTOR.read_bytes())
    (cell,) = predict(
        measurement, np.int64(10**9), np.int32(300), members=np.int8(9), seed=np.uint8(1)
    ).cells
    assert (cell.bandwidth, cell.downtime_limit_ms) == (1e9, 300)
    cells = predict(measurement, np.array([1e9, 2e9]), (300, math.inf), model="published").cells
    assert [(cell.bandwidth, cell.downtime_limit_ms) for cell in cells] == [
        (1e9, 300), (1e9, None), (2e9, 300), (2e9, None),
    ]  # fmt: skip


@pytest.mark.parametrize("model", ["qemu", "published"])
@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        *(
            (name, value, re.escape(shown))
            for name in ("bandwidth", "downtime", "link")
            for value, shown in (
                (True, "True"), (np.True_, "True"), (math.nan, "nan"), (-math.inf, "-inf"), (-1, "-1"),
                (0, "0"), (b"1s", "b'1s'"), (1j, "1j"), (object, "<class 'object'>"), ("nan", "'nan'"),
            )
        ),
        ("bandwidth", math.inf, "inf"),
        ("bandwidth", [None], "None"),
        ("bandwidth", [1e9, True], "True"),
        ("downtime", [300, [300]], r"\[300\]"),
        *(
            (name, value, re.escape(shown))
            for name in ("members", "seed")
            for value, shown in (
                (-1, "-1"), (True, "True"), (1.5, "1.5"), (math.nan, "nan"), ("1", "'1'"),
                (None, "None"), (1 << 64, str(1 << 64)),
            )
        ),
        ("members", 0, "0"),
    ],
)  # fmt: skip
def test_an_argument_that_is_none_is_a_usage_error_that_names_it(model, name, value, shown):
    measurement = Measurement.from_json(VECTOR.read_bytes())
    given = {"bandwidth": 1e9, "downtime": 300, name: value}
    with pytest.raises(UsageError, match=f"^{name}.*{shown}"):
        predict(measurement, **given, model=model)


@pytest.mark.parametrize(
    "name", ["link", "deadline_ms", "latency_ms", "logging_us", "zero_page_us"]
)
@pytest.mark.parametrize("value", [True, math.nan, math.inf, -1, "1"])
def test_a_setup_that_cannot_be_is_a_usage_error_that_names_its_member(name, value):
    with pytest.raises(UsageError, match=f"^{name}: "):
        Precopy(**{name: value})


def test_what_the_published_model_does_not_know_is_told(capsys):
    words = ("predict", VECTOR, "--model", "published", "--json")
    plain = run(capsys, *words, "--deadline", "5m")
    code, out, err = run(capsys, *words, "--deadline", "5m", "--link", "25Gbps")
    assert (code, out) == (0, plain[1])
    assert plain[2] == ""
    assert "the published model knows of bandwidth, downtime and deadline only" in err


@pytest.mark.statistics
def test_a_latency_below_a_millisecond_counts(capsys):
    words = ("advise", VECTOR, "--bandwidth", "25Gbps", "--downtime", "3s", "--json")
    fetches = []
    for latency in ("0us", "100us", "0.1ms", "1ms"):
        advice = json.loads(run(capsys, *words, "--latency", latency)[1])["advice"]
        fetches.append(advice[-1]["page-fetches"])
    assert fetches[0] > fetches[1] == fetches[2] > fetches[3]


def test_a_measurement_that_goes_on_is_told_by_its_status(capsys, tmp_path):
    path = tmp_path / "reply.json"
    path.write_text('{"status": "measuring", "calc-time": 1}')
    code, _, err = run(capsys, "advise", "--quick", path, *QUICK)
    assert code == 1
    assert f"{path}: status: 'measuring', not 'measured'" in err
