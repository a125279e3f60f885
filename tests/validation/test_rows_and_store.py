import dataclasses
import json
import sqlite3
from contextlib import closing

import pytest
from older_store import make_older_store
from simulated import generator, simulate

from pysampler.errors import FormatError, PysamplerError
from pysampler.host import machine
from pysampler.units import GIB
from pysampler.validation.published import published
from pysampler.validation.row import Row
from pysampler.validation.store import Store
from pysampler.validation.summary import cells, summaries


def test_a_row_comes_back_from_json():
    row = simulate(generator(1))[3]
    assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_a_row_without_a_member_is_refused():
    with pytest.raises(FormatError, match="'writes' is missing"):
        Row.from_dict({"workload": "uniform", "writes-": 1, "size": 1, "calc-time-ms": 1,
                       "method": "fast", "repeat": 0, "sample-pages": 1, "asked-wps": 0,
                       "idle-wps": 1.0, "seconds": 1.0})  # fmt: skip


def test_repeats_make_one_cell_with_a_smaller_spread():
    rows = simulate(generator(2), repeats=4, calc_times_ms=(100, 200))
    found = cells(rows)
    assert [cell.calc_time_ms for cell in found] == [100, 200]
    assert found[0].sd == pytest.approx(rows[0].rate(rows[0].sd) / 2, rel=1e-3)
    assert found[0].z == pytest.approx(sum(row.z for row in found[0].rows) / 2)


def test_the_published_anchor_figures_come_out():
    # Mean |published sampling / theory - 1|: 1.1 % at 1 GiB, 6.3 % at 4 GiB.
    for size, expected in ((GIB, 0.011), (4 * GIB, 0.063)):
        (summary,) = summaries(simulate(generator(3), size=size))
        assert summary.published_deviation == pytest.approx(expected, abs=5e-4)
    assert published()[4 * GIB, 100] == (10232, 8880, 4070)


def test_another_workload_has_no_published_figures():
    (summary,) = summaries(simulate(generator(3), workload="zipf"))
    assert summary.published_deviation is None


def test_runs_are_stored_and_the_last_come_back_in_order(tmp_path):
    path = str(tmp_path / "new" / "folder" / "store.sqlite")
    runs = [simulate(generator(seed)) for seed in range(3)]
    for rows in runs:
        store = Store(path)
        store.append(rows, {"cpu": "x"})
        store.close()
    last = Store(path).last(2)
    assert [run.number for run in last] == [2, 3]
    assert [list(run.rows) for run in last] == runs[1:]
    assert last[0].machine == {"cpu": "x"}


def test_each_figure_has_a_column(tmp_path):
    path = str(tmp_path / "store.sqlite")
    rows = simulate(generator(1), calc_times_ms=(100, 200))
    with closing(Store(path)) as store:
        store.append(rows, machine.facts())
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute("SELECT * FROM rows ORDER BY rowid")]
        (run,) = [dict(run) for run in connection.execute("SELECT * FROM runs")]
    assert found == [{"run": 1, **dataclasses.asdict(row)} for row in rows]
    assert {
        key.replace("_", "-"): value for key, value in run.items() if key not in {"id", "started"}
    } == machine.facts()


def test_the_facts_about_a_machine_come_back_but_for_what_is_not_known(tmp_path):
    facts = machine.facts() | {"governor": None, "virtual": False}
    with closing(Store(str(tmp_path / "store.sqlite"))) as store:
        store.append(simulate(generator(1)), facts)
        (run,) = store.last(1)
    del facts["governor"]
    assert run.machine == facts
    assert run.machine["virtual"] is False


def test_an_older_store_has_the_same_runs_before_and_after_it_is_brought_up(tmp_path):
    path = str(tmp_path / "store.sqlite")
    make_older_store(path)
    with closing(sqlite3.connect(path)) as connection:
        written = connection.execute("SELECT run, row FROM rows ORDER BY rowid").fetchall()
    with closing(Store(path, change=False)) as store:
        runs = store.last(9)
    assert [run.number for run in runs] == [1, 2, 3]
    assert runs[0].machine["kernel"] == "6.1.0"
    assert [(run.number, row.to_dict()) for run in runs for row in run.rows] == [
        (number, json.loads(row)) for number, row in written
    ]
    with closing(Store(path)) as store:
        assert store.last(9) == runs
        assert store.append(runs[0].rows, runs[0].machine) == 4
    with closing(Store(path)) as store:  # nothing is brought up twice
        assert store.last(9)[:3] == runs
        assert store.last(1)[0].rows == runs[0].rows


def test_a_store_that_another_process_brings_up_meanwhile_is_read(tmp_path):
    path = str(tmp_path / "store.sqlite")
    make_older_store(path)
    with closing(Store(path, change=False)) as reader:
        runs = reader.last(9)
        Store(path).close()
        assert reader.last(9) == runs


def test_an_older_store_is_as_it_was_when_it_cannot_be_brought_up(tmp_path):
    path = tmp_path / "store.sqlite"
    make_older_store(path)
    with closing(sqlite3.connect(path)) as connection:
        # The newest run is inserted first: this one fails when the others are in.
        connection.execute("UPDATE runs SET machine = '{\"cpu\": [1]}' WHERE id = 1")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(PysamplerError, match="as a store"):
        Store(str(path))
    assert path.read_bytes() == before


def test_a_file_that_is_no_store_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("shopping list, and so on " * 100)
    with pytest.raises(PysamplerError, match="as a store"):
        Store(str(path))


def test_a_store_of_another_version_is_refused(tmp_path):
    path = str(tmp_path / "store.sqlite")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(PysamplerError, match="another version"):
        Store(path)


def test_a_folder_that_cannot_be_made_is_refused():
    with pytest.raises(PysamplerError, match="as a store"):
        Store("/proc/nowhere/store.sqlite")
