"""The check that Markdown is wrapped tells prose from what may be longer."""

import runpy
from pathlib import Path

import pytest

too_long = runpy.run_path(str(Path(__file__).parent.parent / ".ci" / "wrapped.py"))["too_long"]
LONG = "word " * 30


def test_prose_and_lists_are_wrapped_at_100_columns():
    text = f"{'a ' * 50}\n{'a ' * 49}bcd\n{'a ' * 49}bc\n- {LONG}\n  {LONG}\n"
    assert too_long(text.replace(" \n", "\n")) == [2, 4, 5]


@pytest.mark.parametrize(
    "text",
    [
        f"| {LONG} |",
        f"## {LONG}",
        f"    {LONG}",
        f"```sh\n{LONG}\n```",
        f"~~~\n```\n{LONG}\n~~~",
        "w" * 120,
        f"See [the page](https://example.org/{'a' * 100}).",
    ],
)
def test_tables_headings_code_and_links_may_be_longer(text):
    assert too_long(text) == []


def test_prose_after_a_code_block_counts_again():
    assert too_long(f"```\n{LONG}\n```\n{LONG}\n") == [4]
