# SPDX-License-Identifier: MIT
"""Start child processes that run nothing of the current folder.

``python -c`` and ``python -m`` look for modules in the current folder first. We may be root, and
that folder may be anybody's. So each child runs the same interpreter isolated (``-I``: no current
folder, no PYTHONPATH, no user's own packages). This file, started as a script, then loads the
package from its own place. Neither a copy elsewhere on the path nor a module in the current folder
can take that place.
"""

from __future__ import annotations

import os
import sys

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def code_command(code: str) -> list[str]:
    """Return the command that runs code which imports the standard library only."""
    return [sys.executable, "-I", "-c", code]


def module_command(module: str, *words: str) -> list[str]:
    """Return the command that runs a module of this package as ``python -m`` would.

    Args:
        module: its full name, ``pysampler...``.
        words: its arguments.
    """
    return [sys.executable, "-I", os.path.abspath(__file__), _libraries(), module, *words]


def _libraries() -> str:
    """Return the folders that the libraries of the C core came from.

    They may be where an isolated interpreter does not look: ``pip install --user`` or ``--target``.
    """
    import _cffi_backend  # noqa: PLC0415 - not when this file is the script
    import numpy  # noqa: ICN001, PLC0415

    folders = (os.path.dirname(_cffi_backend.__file__), os.path.dirname(numpy.__path__[0]))
    return os.pathsep.join(dict.fromkeys(map(os.path.abspath, folders)))


def _run() -> None:
    """Load the package from this file's folder and run the module that the command names."""
    from importlib.util import module_from_spec, spec_from_file_location  # noqa: PLC0415
    from runpy import run_module  # noqa: PLC0415

    _, libraries, name, *words = sys.argv
    # Last: they hide nothing of the interpreter's own.
    sys.path += libraries.split(os.pathsep)
    spec = spec_from_file_location(
        "pysampler",
        os.path.join(_PACKAGE, "__init__.py"),
        submodule_search_locations=[_PACKAGE],
    )
    assert spec is not None  # noqa: S101 - for the type checker, as the next
    assert spec.loader is not None  # noqa: S101
    package = module_from_spec(spec)
    sys.modules["pysampler"] = package
    spec.loader.exec_module(package)
    sys.argv = [name, *words]
    run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run()
