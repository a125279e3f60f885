# SPDX-License-Identifier: MIT
"""The rooms of docs/architecture.md: nothing imports from a higher one, and no imports go round.

Imports inside functions and those for annotations alone count as well.
"""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pysampler

PACKAGE = Path(pysampler.__file__).parent

# From the ground up. A room may import from itself and from those below it.
ROOMS = (
    ("errors", "units", "arguments", "printable", "clock", "version"),
    ("_native",),
    ("core",),
    ("qemu",),
    ("host",),
    ("vector",),
    ("memory",),
    ("sampling",),
    ("tracking",),
    ("measuring",),
    ("guest",),
    ("migration",),
    ("qmp",),
    ("prediction",),
    ("experiment", "validation", "benchmark", "doctor"),
    ("cli",),
    ("__main__", "demo"),
    ("bound_guest",),
)
LEVELS = {name: level for level, room in enumerate(ROOMS) for name in room}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def named_in(tree, name, path):
    """Yield the modules of the package that a module imports, as the interpreter finds them."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: -(node.level - 1) or None] if node.level else []
            home = ".".join([*parts, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{home}.{alias.name}"
                yield inner if inner in MODULES else home


def imports_of(name):
    path = MODULES[name]
    found = set(named_in(ast.parse(path.read_text()), name, path))
    return {module for module in found if module.split(".")[0] == "pysampler"} - {name}


def room_of(module):
    return module.split(".")[1] if "." in module else ""


def test_every_module_has_a_room():
    assert {room_of(module) for module in MODULES if module != "pysampler"} <= set(LEVELS)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"pysampler"}))
def test_a_module_imports_from_no_higher_room(name):
    higher = {
        module
        for module in imports_of(name)
        # Of the package itself only what does not lead to a room: its version and its docstring.
        if module != "pysampler" and LEVELS[room_of(module)] > LEVELS[room_of(name)]
    }
    assert not higher


def test_rooms_of_one_floor_do_not_know_each_other():
    ground = set(ROOMS[0])
    for name in set(MODULES) - {"pysampler"}:
        for module in imports_of(name) - {"pysampler"}:
            mine, other = room_of(name), room_of(module)
            if mine != other and mine not in ground:
                assert LEVELS[mine] != LEVELS[other], (name, module)


def test_predictions_know_of_migration_no_more_than_the_facts_about_qemu():
    known = {"core", "qemu", "vector", "prediction", *ROOMS[0]}
    for name in MODULES:
        if name.startswith("pysampler.prediction"):
            assert {room_of(module) for module in imports_of(name) - {"pysampler"}} <= known, name


def test_one_module_chooses_the_observer_of_a_mode():
    observers = {
        "pysampler.sampling.page_sampling",
        "pysampler.tracking.dirty_bitmap",
        "pysampler.tracking.soft_dirty",
        "pysampler.tracking.full_comparison",
    }
    own = ("sampling", "tracking")
    users = {name for name in MODULES if imports_of(name) & observers and room_of(name) not in own}
    assert users == {"pysampler.measuring"}


def test_no_imports_go_round():
    graph = {name: imports_of(name) & set(MODULES) for name in MODULES}
    # `pysampler` imports lazily what it shows; its rooms import nothing of it but at the top.
    graph = {name: imports - {"pysampler"} for name, imports in graph.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from pysampler.units import GIB", {"pysampler.units"}),
        ("from pysampler.host import machine", {"pysampler.host.machine"}),
        ("def f():\n    import pysampler.cli.sample", {"pysampler.cli.sample"}),
        ("from .units import GIB", {"pysampler.units"}),
        ("from . import units", {"pysampler.units"}),
        (
            "if TYPE_CHECKING:\n    from pysampler.vector.measurement import Mode",
            {"pysampler.vector.measurement"},
        ),
    ],
)
def test_the_walk_sees_an_import(source, found):
    assert set(named_in(ast.parse(source), "pysampler.clock", PACKAGE / "clock.py")) == found


def test_no_two_files_of_tests_have_one_name():
    # pytest imports them by their names alone.
    paths = Path(__file__).parent.rglob("test_*.py")
    counted = Counter(path.name for path in paths)
    assert [name for name, n in counted.items() if n > 1] == []
