import os
import subprocess
import sys

import pytest


@pytest.fixture
def run_without(tmp_path):
    """Run Python code where importing a package fails; return what it printed."""

    def run(package, code):
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "__init__.py").write_text(f"raise ImportError('no {package} here')")
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    return run
