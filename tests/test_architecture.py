# SPDX-License-Identifier: MIT
"""docs/architecture.md is the map of the code that is here: no file is missing, none is invented."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAP = (ROOT / "docs" / "architecture.md").read_text()
FILE = re.compile(r"[\w./]+\.(?:py|c|h)\b")
NAMED = {name.rpartition("/")[2] for name in FILE.findall(MAP)}
# A room's part of the map begins with its name, as in **host/**.
_BEFORE, *_PARTS = re.split(r"^\*\*(\w+)/\*\*", MAP, flags=re.MULTILINE)
NAMED_IN = {
    room: {name.rpartition("/")[2] for name in FILE.findall(part)}
    for room, part in zip(_PARTS[::2], _PARTS[1::2], strict=True)
}
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
    if path.parent.name in AS_A_WHOLE:
        assert f"{path.parent.name}/" in MAP
    elif len(path.parts) > 2:
        assert path.name in NAMED_IN[path.parts[1]]
    else:
        assert path.name in NAMED


def test_the_map_names_no_file_that_is_not_there():
    folders = ("pysampler", "csrc", "tests", "bench")
    names = {path.name for folder in folders for path in (ROOT / folder).rglob("*.*")}
    names |= {path.name for path in ROOT.iterdir()}
    assert NAMED - names == set()
