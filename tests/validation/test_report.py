import json
from html.parser import HTMLParser

import pytest
from simulated import generator, simulate

from pysampler.errors import PysamplerError
from pysampler.host import machine
from pysampler.units import GIB
from pysampler.validation.report import write_report
from pysampler.validation.row import Row


class Page(HTMLParser):
    """Checks that tags match, and collects what a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.tables, self.pictures = [], [], 0, 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tables += tag == "table"
        self.pictures += tag == "svg"
        for name in ("src", "href", "xlink:href"):
            if name in values and not values[name].startswith("#"):
                self.fetched.append(values[name])
        if tag == "script":
            self.fetched.append("script")
        if tag not in {"meta", "use", "path", "rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in {"meta", "use", "path", "rect"}:
            assert self.open.pop() == tag


@pytest.fixture
def rows():
    found = []
    for size in (GIB, 4 * GIB):
        for method in ("fast", "qemu", "dirty-bitmap"):
            found += simulate(generator(size // GIB), method=method, size=size)
    return found


def test_the_report_is_one_page_that_fetches_nothing(rows, tmp_path):
    names = write_report(str(tmp_path / "report"), rows, machine.facts())
    page = Page((tmp_path / "report" / "index.html").read_text(encoding="utf-8"))
    assert (page.fetched, page.tables, page.pictures) == ([], 2, 3)
    assert {"rates.svg", "rates.png", "rows.jsonl", "machine.json"} <= set(names)
    assert all((tmp_path / "report" / name).stat().st_size for name in names)


def test_the_raw_rows_are_beside_it(rows, tmp_path):
    write_report(str(tmp_path), rows, machine.facts())
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [Row.from_dict(json.loads(line)) for line in lines] == rows


def test_what_the_machine_calls_itself_cannot_break_the_page(rows, tmp_path):
    facts = {**machine.facts(), "cpu": "<script>alert(1)</script>"}
    write_report(str(tmp_path), rows, facts)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize("workload", ["hotcold", "zipf", "sweep"])
def test_a_report_of_any_workload_and_one_size_comes_out(workload, tmp_path):
    rows = simulate(generator(7), workload=workload, calc_times_ms=(100, 500))
    write_report(str(tmp_path), rows, machine.facts())
    Page((tmp_path / "index.html").read_text(encoding="utf-8"))


def test_a_folder_that_cannot_be_written_is_refused(rows):
    with pytest.raises(PysamplerError, match="cannot write the report"):
        write_report("/proc/report", rows, machine.facts())
