# SPDX-License-Identifier: MIT
"""Tests and benchmarks use no private names: what they need is public, and has a docstring."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# This file's own samples have what the others must not have.
FILES = sorted(
    path
    for folder in ("tests", "bench")
    for path in (ROOT / folder).rglob("*.py")
    if path != Path(__file__)
)
# The extension module of the C core, and what others document though it begins with an underscore.
DOCUMENTED = {"_native", "_exit", "_asdict", "_fields", "_replace"}
# Functions that take the name of an attribute as text.
BY_NAME = {"setattr", "delattr", "getattr", "hasattr", "attrgetter"}
# In the text of a program, which a test runs in another process.
IN_TEXT = re.compile(
    r"(?<!\bself)(?<!\bcls)\.(_[a-z]\w*)|^\s*(?:from\s\S+\s)?import\s.*\b(_[a-z]\w*)",
    re.ASCII | re.IGNORECASE | re.MULTILINE,
)


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name not in DOCUMENTED


def names_in(node):
    """Yield the names that a part of a program takes from elsewhere."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from alias.name.split(".")
    elif isinstance(node, ast.ImportFrom):
        yield from (node.module or "").split(".")
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Attribute):
        if not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}):
            yield node.attr
    elif isinstance(node, ast.Call):
        if ast.unparse(node.func).rpartition(".")[2] in BY_NAME:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield from argument.value.split(".")
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        for found in IN_TEXT.finditer(node.value):
            yield found[1] or found[2]


def private_names(source):
    return {
        name for node in ast.walk(ast.parse(source)) for name in names_in(node) if is_private(name)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_uses_no_private_names(path):
    assert private_names(path.read_text()) == set()


@pytest.mark.parametrize(
    "source",
    [
        "from pysampler.host.rights import _why",
        "from pysampler.host._rights import why",
        "from pysampler import _why as why",
        "import pysampler._why",
        "rights._why(1)",
        "guest().threads[0]._why",
        "self.guest._why",
        "rights._Credentials.has",
        "monkeypatch.setattr(rights, '_YAMA', 1)",
        "monkeypatch.setattr('pysampler.host.rights._YAMA', 1)",
        "getattr(rights, '_why')",
        "CODE = 'import os\\nhandler = observer._handler\\n'",
        "CODE = 'import os\\nfrom pysampler.host.rights import access_error, _why'",
    ],
)
def test_a_private_name_is_found(source):
    assert len(private_names(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from pysampler import _native",
        "from pysampler._native import ffi, lib",
        "self._why = cls._made()",
        "os._exit(0)",
        "row._replace(a=1)",
        "guest.__class__.__name__",
        "monkeypatch.setattr(guest, 'STOP_LIMIT_S', 1)",
        "name.replace('_', '-')",
        "def f(_pid): return _pid",
        "CODE = 'import os; os._exit(0)'",
    ],
)
def test_other_names_are_left_alone(source):
    assert private_names(source) == set()
