# SPDX-License-Identifier: MIT
"""docs/architecture.md is the map of the code that is here: no file is missing, none is invented."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "architecture.md").read_text()
NAMED = {name.rpartition("/")[2] for name in re.findall(r"[\w./]+\.(?:py|c|h)\b", MAP)}
FOLDERS = set(re.findall(r"\b(\w+)/", MAP))
SOURCES = [
    path.relative_to(ROOT)
    for folder, pattern in (("pysampler", "*.py"), ("csrc", "*.[ch]"))
    for path in (ROOT / folder).rglob(pattern)
    if not path.name.startswith(("_", "."))
]


# The map says in one line what all files of these hold.
AS_A_WHOLE = {"core", "commands", "wire", "validation", "benchmark", "cli"}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_each_file_is_on_the_map(path):
    assert path.name in NAMED or path.parent.name in AS_A_WHOLE
    assert path.parent.name in FOLDERS


def test_the_map_names_no_file_that_is_not_there():
    folders = ("pysampler", "csrc", "tests", "bench")
    names = {path.name for folder in folders for path in (ROOT / folder).rglob("*.*")}
    names |= {path.name for path in ROOT.iterdir()}
    assert NAMED - names == set()
