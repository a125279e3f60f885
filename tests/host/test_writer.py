"""What is written as root, where another user prepared the place: the other gains nothing."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from simulated import generator, simulate

from pysampler.cli.output import Output
from pysampler.errors import PysamplerError, SourceError
from pysampler.host import machine
from pysampler.host.writer import append_line
from pysampler.qmp.address import listen
from pysampler.validation.report import write_report
from pysampler.validation.store import Store

OTHER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has a second user to be")


@pytest.fixture
def sticky():
    """A folder as /tmp is; not in pytest's, which only its user may enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o1777)  # noqa: S103 - as /tmp
        yield Path(folder)


@pytest.fixture
def secret(tmp_path):
    """What nobody but root may write."""
    path = tmp_path / "secret"
    path.write_text("secret")
    return path


def as_other(code, *words):
    """Run Python as another user."""
    script = (
        f"import os, socket, sys\nos.setgroups([]); os.setgid({OTHER}); os.setuid({OTHER})\n"
        f"os.umask(0)\n{code}"
    )
    subprocess.run(
        ["/usr/bin/env", sys.executable, "-I", "-c", script, *map(str, words)], check=True
    )


def put(path):
    with Output(str(path)) as output:
        output.write_bytes(b"result")


@needs_root
@pytest.mark.parametrize("mode", [0o6777, 0o4755, 0o2755, 0o1777, 0o666, 0o777])
def test_nothing_of_another_users_mode_is_kept(sticky, mode):
    as_other(
        "open(sys.argv[1], 'w').close(); os.chmod(sys.argv[1], int(sys.argv[2]))",
        sticky / "v",
        mode,
    )
    put(sticky / "v")
    status = os.stat(sticky / "v")
    assert (status.st_uid, stat.S_IMODE(status.st_mode) & 0o7022) == (0, 0)
    assert (sticky / "v").read_bytes() == b"result"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o6755, 0o1644])
def test_the_mode_of_a_file_of_ours_is_kept_but_for_special_bits(tmp_path, mode):
    (tmp_path / "v").touch()
    os.chmod(tmp_path / "v", mode)
    put(tmp_path / "v")
    assert stat.S_IMODE(os.stat(tmp_path / "v").st_mode) == mode & 0o777


LINK = "os.symlink(sys.argv[2], sys.argv[1])"
HARD = "os.link(sys.argv[2], sys.argv[1])"


@needs_root
@pytest.mark.parametrize("target", ["secret", "missing"])
def test_a_link_of_another_user_is_not_followed(sticky, secret, target):
    as_other(LINK, sticky / "v", secret.parent / target)
    with pytest.raises(
        PysamplerError, match=r"a link on the way to it, .* belongs to another user"
    ):
        put(sticky / "v")
    assert (secret.read_text(), sorted(os.listdir(secret.parent))) == ("secret", ["secret"])


@needs_root
def test_nor_is_one_to_a_folder(sticky, secret):
    as_other(LINK, sticky / "folder", secret.parent)
    for name in ("secret", "new", "../other", "deeper/new"):
        with pytest.raises(PysamplerError, match="belongs to another user"):
            put(sticky / "folder" / name)
    with pytest.raises(PysamplerError, match="belongs to another user"):
        write_report(str(sticky / "folder" / "report"), simulate(generator(1)), machine.facts())
    with pytest.raises(PysamplerError, match="belongs to another user"):
        Store(str(sticky / "folder" / "store"))
    assert (secret.read_text(), os.listdir(secret.parent)) == ("secret", ["secret"])


@needs_root
def test_nor_is_one_that_a_link_of_ours_leads_to(sticky, secret, tmp_path_factory):
    ours = tmp_path_factory.mktemp("ours") / "v"
    as_other(LINK, sticky / "v", secret)
    os.symlink(sticky / "v", ours)
    with pytest.raises(PysamplerError, match="belongs to another user"):
        put(ours)
    assert secret.read_text() == "secret"


def test_a_link_of_ours_stays_one(tmp_path):
    (tmp_path / "folder").mkdir()
    os.symlink("folder", tmp_path / "by")
    os.symlink("by/../by/new", tmp_path / "v")
    put(tmp_path / "v")
    assert (tmp_path / "v").is_symlink()
    assert (tmp_path / "folder" / "new").read_bytes() == b"result"
    assert os.listdir(tmp_path / "folder") == ["new"]


def test_links_in_a_circle_are_one_line(tmp_path):
    os.symlink("b", tmp_path / "a")
    os.symlink("a", tmp_path / "b")
    with pytest.raises(PysamplerError, match="Too many levels of symbolic links"):
        put(tmp_path / "a")


@needs_root
def test_a_fifo_of_another_user_is_not_written_into(sticky):
    as_other("os.mkfifo(sys.argv[1])", sticky / "v")
    reader = os.open(sticky / "v", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with pytest.raises(PysamplerError, match="this FIFO belongs to another user"):
            put(sticky / "v")
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


def test_a_folder_that_is_exchanged_meanwhile_is_written_to_where_it_went(tmp_path, secret):
    (tmp_path / "folder").mkdir()
    with Output(str(tmp_path / "folder" / "secret")) as output:
        os.rename(tmp_path / "folder", tmp_path / "moved")
        os.symlink(secret.parent, tmp_path / "folder")
        output.write_bytes(b"result")
    assert secret.read_text() == "secret"
    assert (tmp_path / "moved" / "secret").read_bytes() == b"result"


@needs_root
def test_a_report_writes_its_own_files_only(sticky, secret):
    names = ("index.html", "rows.jsonl", "machine.json", "rates.svg", "rates.png")
    folder = sticky / "report"
    as_other("os.mkdir(sys.argv[1])", folder)
    for name in names:
        as_other(LINK, folder / name, secret)
    as_other("os.mkfifo(sys.argv[1])", folder / "slowdown.svg")
    write_report(str(folder), simulate(generator(1)), machine.facts())
    assert secret.read_text() == "secret"
    for name in (*names, "slowdown.svg"):
        status = os.lstat(folder / name)
        assert stat.S_ISREG(status.st_mode), name
        assert status.st_uid == 0, name
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@needs_root
@pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
@pytest.mark.parametrize(
    "planted", ["open(sys.argv[1], 'w').close()", LINK, "os.mkfifo(sys.argv[1])"]
)
def test_a_store_beside_what_another_user_planted_is_refused(sticky, secret, suffix, planted):
    as_other(planted, sticky / f"s{suffix}", secret)
    with pytest.raises(PysamplerError, match=r"belongs to another user|is no regular file"):
        Store(str(sticky / "s"))
    assert secret.read_text() == "secret"


@needs_root
def test_a_store_in_another_users_folder_is_refused(sticky):
    as_other("os.mkdir(sys.argv[1])", sticky / "folder")
    with pytest.raises(PysamplerError, match="its folder belongs to another user"):
        Store(str(sticky / "folder" / "s"))
    assert os.listdir(sticky / "folder") == []


def test_a_store_with_a_second_name_or_where_anybody_writes_is_refused(tmp_path):
    path = tmp_path / "s"
    Store(str(path)).close()
    os.link(path, tmp_path / "second")
    with pytest.raises(PysamplerError, match="has a second name"):
        Store(str(path))
    os.unlink(tmp_path / "second")
    os.chmod(tmp_path, 0o777)  # noqa: S103
    with pytest.raises(PysamplerError, match="anybody can write in its folder"):
        Store(str(path))


def test_a_store_is_refused_where_its_journal_could_be_another_users(sticky):
    # SQLite would take one that appears later for its own, and remove what it names.
    with pytest.raises(PysamplerError, match="anybody can write in its folder"):
        Store(str(sticky / "s"))
    assert os.listdir(sticky) == []


@needs_root
@pytest.mark.parametrize(
    ("mode", "owner", "group", "why"),
    [
        (0o775, 0, 50, r"a group of users \(gid 50\) can write in"),
        (0o777, 0, 0, "anybody can write in"),
        (0o755, OTHER, 0, r"belongs to another user|another user \(uid 65534\)"),
    ],
)
@pytest.mark.parametrize("inner", [".", "ours", "ours/deeper"])
def test_a_store_is_refused_below_a_folder_that_others_can_change(
    tmp_path, mode, owner, group, why, inner
):
    outer = tmp_path / "outer"
    (outer / inner).mkdir(parents=True)
    os.chown(outer, owner, group)
    outer.chmod(mode)
    with pytest.raises(PysamplerError, match=why) as error:
        Store(str(outer / inner / "s"))
    assert ("a folder above it" in str(error.value)) == (inner != ".")
    assert not (outer / inner / "s").exists()


def test_a_store_in_a_folder_of_ours_below_a_sticky_one_works(sticky):
    Store(str(sticky / "ours" / "s")).close()


def test_a_store_whose_name_is_strange_works(tmp_path):
    path = tmp_path / "a?b=1#%41 &mode=ro"
    with closing(Store(str(path))) as store:
        store.append(simulate(generator(1)), {})
    with closing(Store(str(path), change=False)) as store:
        assert len(store.last(1)) == 1
    assert os.listdir(tmp_path) == [path.name]


@needs_root
@pytest.mark.parametrize(
    "planted", ["open(sys.argv[1], 'w').close()", LINK, "os.mkfifo(sys.argv[1])"]
)
def test_records_are_not_appended_to_what_another_user_planted(sticky, secret, planted):
    as_other(planted, sticky / "r", secret)
    with pytest.raises((PysamplerError, OSError)):
        append_line(str(sticky / "r"), "record")
    assert secret.read_text() == "secret"


def test_records_are_appended(tmp_path):
    for i in range(3):
        append_line(str(tmp_path / "r"), str(i))
    assert (tmp_path / "r").read_text() == "0\n1\n2\n"


@needs_root
def test_a_second_name_of_a_file_of_ours_gives_no_mode(tmp_path, secret):
    secret.chmod(0o666)
    os.link(secret, tmp_path / "v")
    umask = os.umask(0o022)
    put(tmp_path / "v")
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "v").lstat().st_mode) == 0o644
    assert secret.read_text() == "secret"


@needs_root
def test_another_users_dead_socket_is_left_alone(sticky):
    as_other("socket.socket(socket.AF_UNIX).bind(sys.argv[1])", sticky / "s")
    with pytest.raises(SourceError, match="another user's"):
        listen(f"unix:{sticky}/s")
    assert stat.S_ISSOCK(os.lstat(sticky / "s").st_mode)


@needs_root
def test_a_socket_behind_another_users_link_is_left_alone(sticky, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    as_other("os.symlink(sys.argv[1], sys.argv[2])", tmp_path, sticky / "d")
    with pytest.raises(PysamplerError, match="belongs to another user"):
        listen(f"unix:{sticky}/d/s")
    assert (tmp_path / "s").exists()


def test_a_socket_whose_folder_was_exchanged_removes_nothing_elsewhere(tmp_path):
    for name in ("before", "other"):
        (tmp_path / name).mkdir()
    listener = listen(f"unix:{tmp_path}/before/s")
    (tmp_path / "before").rename(tmp_path / "after")
    (tmp_path / "other" / "s").write_text("precious")
    (tmp_path / "before").symlink_to(tmp_path / "other")
    listener.close()
    assert (tmp_path / "other" / "s").read_text() == "precious"
    assert not (tmp_path / "after" / "s").exists()


def test_no_descriptor_is_left(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    put(tmp_path / "v")
    put("/dev/null")
    Store(str(tmp_path / "store")).close()
    listen(f"unix:{tmp_path}/s").close()
    for path in (tmp_path, "/nonexistent/v"):
        with pytest.raises(PysamplerError):
            put(path)
    with pytest.raises(SourceError):
        listen("unix:/nonexistent/s")
    assert len(os.listdir("/proc/self/fd")) == before
