"""No child of ours runs what lies in the current folder, whoever put it there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pysampler
from pysampler import core
from pysampler.core import UffdKind
from pysampler.host import child
from pysampler.tracking.cleanup import Cleanup
from pysampler.tracking.soft_dirty import has_soft_dirty

# Modules of the standard library, of ours, of our libraries, and those that Python itself looks for.
PLANTED = (
    "mmap", "numpy", "rich", "runpy", "signal", "contextlib", "json", "encodings", "site", "cffi",
    "_cffi_backend", "ctypes", "sitecustomize", "usercustomize", "pysampler", "collections",
)  # fmt: skip


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A current folder full of modules that leave a note when they run."""
    folder, notes = tmp_path / "trap", tmp_path / "notes"
    folder.mkdir()
    notes.mkdir()
    (folder / "__init__.py").touch()
    for name in PLANTED:
        code = f"open({str(notes)!r} + '/{name}', 'w').close(); raise SystemExit(66)\n"
        (folder / f"{name}.py").write_text(code)
        (folder / name).mkdir()
        for part in ("__init__", "__main__", "core", "tracking", "child"):
            (folder / name / f"{part}.py").write_text(code)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for packages in (folder / "site-packages", folder / "lib" / version / "site-packages"):
        packages.mkdir(parents=True)
        (packages / "trap.pth").write_text(f"import os; open({str(notes)!r} + '/pth', 'w')\n")
    monkeypatch.chdir(folder)
    yield folder
    assert os.listdir(notes) == []


# How children may be led to the folder; "" is the current folder on PYTHONPATH, and so is ".".
SURROUNDINGS = [
    {},
    {"PYTHONPATH": ""},
    {"PYTHONPATH": "."},
    {"PYTHONPATH": "{folder}"},
    {"PYTHONPATH": f"{os.pathsep}{{folder}}{os.pathsep}"},
    {"PYTHONSTARTUP": "{folder}/mmap.py", "PYTHONINSPECT": ""},
    {"PYTHONUSERBASE": "{folder}", "HOME": "{folder}"},
    {"PYTHONHOME": "{folder}"},
]


@pytest.fixture(params=SURROUNDINGS, ids=str)
def surroundings(request, trap, monkeypatch):
    for name, value in request.param.items():
        monkeypatch.setenv(name, value.format(folder=trap))


def run(command, text=""):
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.usefixtures("trap")
def test_the_trap_catches_what_is_started_carelessly(tmp_path, monkeypatch):
    # Else the tests below could not fail. The sanitized run sets this.
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    notes = tmp_path / "notes"
    assert run([sys.executable, "-c", "import mmap"])[0] == 66
    assert run([sys.executable, "-m", "pysampler.tracking.cleanup_process"])[0] == 66
    assert set(os.listdir(notes)) & {"mmap", "pysampler"} == {"mmap", "pysampler"}
    for note in notes.iterdir():
        note.unlink()


@pytest.mark.usefixtures("surroundings")
def test_code_runs_with_the_standard_library_alone():
    code = "import json, mmap, runpy, sys; print(json.dumps([mmap.__file__, *sys.path]))"
    status, out, error = run(child.code_command(code))
    assert (status, error) == (0, "")
    assert not [place for place in json.loads(out) if "trap" in place or place in {"", "."}]


@pytest.mark.usefixtures("surroundings")
def test_a_module_of_ours_runs_from_where_this_process_has_it():
    status, out, error = run(child.module_command("pysampler", "--version"))
    assert (status, out, error) == (0, f"pysampler {pysampler.__version__}\n", "")


@pytest.mark.usefixtures("trap")
def test_doctor_and_its_children_are_ours():
    status, out, error = run(child.module_command("pysampler", "doctor", "--json"))
    assert (status, error) == (0, "")
    found = {finding["name"]: finding for finding in json.loads(out)["findings"]}
    assert found["memfd of another process"]["works"], found
    assert found["private memory of another process"]["works"], found


@pytest.mark.usefixtures("surroundings")
def test_the_probe_of_soft_dirty_is_ours():
    has_soft_dirty.cache_clear()
    status, out, _ = run(child.module_command("pysampler.tracking.soft_dirty_child"))
    assert (status, out) == (0, str(has_soft_dirty()))


@pytest.mark.usefixtures("surroundings")
def test_the_cleanup_process_of_exact_tracking_is_ours():
    try:
        fd = core.uffd_open(UffdKind.ASYNC)
    except OSError as error:
        pytest.skip(f"no userfaultfd here: {error}")
    try:
        cleanup = Cleanup(fd, [])  # returns when it is ready
        cleanup.close()
    finally:
        os.close(fd)
    assert cleanup.process.returncode == 0


@pytest.mark.usefixtures("trap")
def test_validate_and_its_guest_are_ours(tmp_path):
    words = ("--sizes", "64M", "--calc-times", "50ms", "--json", "--profile", "fast")
    more = ("--store", str(tmp_path / "s.sqlite"), "--wps", "1000")
    status, out, error = run(child.module_command("pysampler", "validate", *words, *more))
    assert status == 0, error
    assert {json.loads(line)["method"] for line in out.splitlines()} >= {"fast"}


SETTINGS = {
    "LaTeX on a text of theirs": b"text.usetex: True\ntext.latex.preamble: \\input{/etc/shadow}\n",
    "no text": b"\xff\xfe\x00",
    "no settings": b"axes.facecolor: no colour\n: :\n",
}


@pytest.mark.parametrize("settings", [*SETTINGS, "a FIFO"])
@pytest.mark.parametrize("verb", ["predict", "validate"])
def test_matplotlibs_settings_are_not_taken_from_the_current_folder(trap, tmp_path, settings, verb):
    pytest.importorskip("matplotlib")
    pytest.importorskip("scipy")
    if settings in SETTINGS:
        (trap / "matplotlibrc").write_bytes(SETTINGS[settings])
    else:  # to open it would be to wait for ever
        os.mkfifo(trap / "matplotlibrc")
    store = str(tmp_path / "s.sqlite")
    vector = pysampler.sample(bytearray(8 << 20), calc_time="50ms", sample_pages=16384)
    (tmp_path / "v.json").write_text(vector.to_json())
    link = ("--bandwidth", "1Gbps", "--downtime", "1s")
    words = {
        "predict": (str(tmp_path / "v.json"), *link, "--plot", "p.png"),
        "validate": ("--sizes", "64M", "--calc-times", "50ms", "--store", store, "-o", "report"),
    }[verb]
    status, _, error = run(child.module_command("pysampler", verb, *words))
    assert status == 0, error
    assert "matplotlib" not in error


def test_a_child_has_the_same_copy_of_the_package_as_its_parent(tmp_path):
    ask = (
        "import subprocess, sys, pysampler; from pysampler.host import child\n"
        "command = child.module_command('pysampler.where')\n"
        "print(pysampler.__file__)\n"
        "sys.stdout.flush(); subprocess.run(command, check=True)\n"
    )
    # As a build in a folder of its own is, the sanitized one for example.
    shutil.copytree(Path(pysampler.__file__).parent, tmp_path / "pysampler")
    (tmp_path / "pysampler" / "where.py").write_text(
        "import numpy, pysampler, pysampler.core; print(pysampler.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask], env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True, cwd="/",
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(tmp_path / "pysampler" / "__init__.py")] * 2


def test_a_folder_of_sources_without_the_c_core_is_no_hindrance(tmp_path):
    # As a checkout is in which nothing was built: `import pysampler` there would fail.
    checkout = tmp_path / "pysampler"
    shutil.copytree(
        Path(pysampler.__file__).parent, checkout, ignore=shutil.ignore_patterns("*.so")
    )
    done = subprocess.run(
        child.module_command("pysampler", "doctor"), cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "memfd of another process" in done.stdout
