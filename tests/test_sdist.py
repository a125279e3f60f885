"""A source distribution has what it takes to build it."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_an_sdist_has_all_sources_of_the_core(tmp_path):
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for folder in ("csrc", "pysampler"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    code = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "dist").iterdir()
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        f"csrc/{path.name}"
        for path in (ROOT / "csrc").iterdir()
        if path.suffix in {".c", ".h", ".py"}
    }
    assert sources <= names
    assert {"setup.py", "pysampler/py.typed", "pysampler/validation/published.csv"} <= names
