"""A source distribution has what it takes to build it, to test it and to read about it."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked_files():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: nothing says which files belong to it")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    # What is deleted and not yet committed is still listed.
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def sdist_names(folder):
    code = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "dist").iterdir()
    with tarfile.open(path) as archive:
        return {file.name.partition("/")[2] for file in archive if file.isfile()}


def test_an_sdist_has_all_sources_of_the_core(tmp_path):
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("csrc", "pysampler"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    names = sdist_names(tmp_path)
    sources = {
        f"csrc/{path.name}"
        for path in (ROOT / "csrc").iterdir()
        if path.suffix in {".c", ".h", ".py"}
    }
    assert sources <= names
    assert {"setup.py", "pysampler/py.typed", "pysampler/validation/published.csv"} <= names


def test_an_sdist_has_every_tracked_file_and_no_other(tmp_path):
    tracked = tracked_files()
    for name in tracked:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    # What lies about in a checkout.
    for name in ("tests/__pycache__/a.cpython-311.pyc", "pysampler/_native.abi3.so", "csrc/a.o"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = sdist_names(tmp_path)
    made = {name for name in names if name.startswith("pysampler.egg-info/")}
    assert names - made - {"PKG-INFO", "setup.cfg"} == tracked
