"""Why a process may not be read: each cure that is named is applied, and works."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import rights_table
from rights_table import OTHER, USER, become

from pysampler.errors import AccessError, SourceError
from pysampler.host import rights

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="only root can become other users, with setpriv",
)

# Another user may not be allowed to import anything: a first call loads what the others need.
READER = """
import ctypes, json, os, sys
from pysampler.cli import main
from pysampler.host.rights import access_error
main(["sample", "--pid", sys.argv[1], "--calc-time", "50ms"])
main(["sample", "--pid", "4194304"])
access_error(1)
libc = ctypes.CDLL(None, use_errno=True)

def drop(uid, mask):
    libc.prctl(8, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), data) == 0

print(flush=True)
for line in sys.stdin:
    pid, uid, mask = line.split()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        if int(mask) >= 0:
            drop(int(uid), int(mask))
        code = main(["sample", "--pid", pid, "--calc-time", "50ms", "-o", "/dev/null"])
        sys.stderr.flush()
        os._exit(code)
    os.close(write)
    with os.fdopen(read) as said:
        text = said.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text]), flush=True)
"""

CAPABILITIES = {
    "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38, "CAP_CHECKPOINT_RESTORE": 40,
}  # fmt: skip
ALL = -1  # nothing is dropped


@contextlib.contextmanager
def sampling(*prefix):
    """Yield a function that samples as a user with capabilities: its exit code and what it says."""
    with rights_table.subject([]) as own:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", READER, own[0]],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        with process:
            while (line := process.stdout.readline()).strip():  # the first vector
                pass
            assert line, "the reader did not start"

            def sample(pid, uid, capabilities=()):
                mask = capabilities
                if not isinstance(mask, int):
                    mask = sum(1 << CAPABILITIES[name] for name in capabilities)
                print(pid, uid, mask, file=process.stdin, flush=True)
                code, text = json.loads(process.stdout.readline())
                assert "Traceback" not in text
                return code, text.strip()

            yield sample


@pytest.fixture(scope="module")
def sample():
    with sampling() as function:
        yield function


READERS = [
    (uid, capabilities)
    for uid in (USER, 0)
    for capabilities in (
        (), ("CAP_SYS_PTRACE",), ("CAP_DAC_READ_SEARCH",), ("CAP_DAC_OVERRIDE",), ("CAP_PERFMON",),
        ("CAP_SYS_ADMIN",), ("CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE"),
    )
]  # fmt: skip


@pytest.mark.parametrize(("uid", "capabilities"), READERS)
@pytest.mark.parametrize("kind", ["other", "undumpable", "with capabilities"])
def test_the_capabilities_named_and_no_fewer_cure_it(sample, uid, capabilities, kind):
    owner = become(OTHER, ("net_raw",) if kind == "with capabilities" else ())
    with rights_table.subject(owner, kind) as (pid, *_):
        code, line = sample(pid, uid, capabilities)
        if kind == "undumpable" and uid == 0 and "CAP_SYS_PTRACE" in capabilities:
            assert code == 0, line  # its files belong to root
            return
        assert code == 1
        assert line.startswith(f"pysampler sample: process {pid} may not be read: ")
        named = set(re.findall(r"CAP_(?!SYS_PTRACE is there)\w+", line))
        assert named
        assert not named & set(capabilities)
        code, after = sample(pid, uid, {*capabilities, *named})
        assert code == 0, after
        for one in named:  # none of them is named for nothing
            assert sample(pid, uid, {*capabilities, *named} - {one})[0] == 1
        if "as that user" in line:
            assert kind == "other"
            assert sample(pid, OTHER)[0] == 0
        if "sudo" in line:
            assert 'sudo env "PATH=$PATH" pysampler' in line
            assert sample(pid, 0, ALL)[0] == 0


def test_one_s_own_process_that_is_not_dumpable(sample):
    with rights_table.subject(become(USER), "undumpable") as (pid, *_):
        code, line = sample(pid, USER)
        assert code == 1
        assert "not dumpable" in line
        assert "as that user" not in line


def test_one_s_own_process_takes_no_right(sample):
    with rights_table.subject(become(USER)) as (pid, *_):
        assert sample(pid, USER)[0] == 0


@pytest.mark.parametrize("hidepid", ["1", "2", "4", "invisible", "ptraceable"])
def test_what_proc_hides_is_said_to_exist(hidepid):
    prefix = [
        "unshare", "--mount", "sh", "-c",
        f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$@"', "sh",
    ]  # fmt: skip
    with rights_table.subject(become(OTHER)) as (pid, *_), sampling(*prefix) as sample:
        code, line = sample(pid, USER)
        assert code == 1
        assert f"process {pid} may not be read: /proc is mounted with hidepid=" in line
        named = set(re.findall(r"CAP_\w+", line))
        code, after = sample(pid, USER, named)
        assert code == 0, after
        assert sample("4194304", USER)[1].endswith("no process has the pid 4194304")


def test_a_process_outside_of_the_user_namespace():
    inside = ["unshare", "--user", "--map-root-user"]
    with rights_table.subject(become(OTHER)) as (pid, *_), sampling(*inside) as sample:
        line = sample(pid, 0, ALL)[1]
    assert "outside of this user namespace" in line
    assert "CAP_SYS_PTRACE" not in line


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (["unshare", "--pid", "--fork"], "ids of another pid namespace"),
        (["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"],
         "/proc is not mounted here"),
    ],
)  # fmt: skip
def test_a_proc_that_is_not_ours_is_named_and_no_process_denied(prefix, words):
    """By a number of it, system calls may find another process."""
    with rights_table.subject([]) as (pid, *_):
        command = [*prefix, sys.executable, "-c", "from pysampler.cli import main; main()"]
        done = subprocess.run(
            [*command, "sample", "--pid", pid, "--calc-time", "50ms", "-o", "/dev/null"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert words in done.stderr
        assert "no process" not in done.stderr


def test_a_process_that_has_ended_is_no_question_of_rights():
    with rights_table.subject([]) as (pid, *_):
        pass
    for error in (FileNotFoundError(2, ""), ProcessLookupError(3, "")):
        found = rights.process_error(error, int(pid))
        assert not isinstance(found, AccessError)
        assert isinstance(found, SourceError)
        assert str(found) == f"no process has the pid {pid}"


# Says why a process may not be read, though its files may. User 0 keeps all capabilities.
WHY = """
import os, sys
from pysampler.host.rights import access_error
access_error(1)  # loads what another user may not be allowed to import
pid, uid = map(int, sys.argv[1:])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
print(access_error(pid))
"""


def why_refused_with_yama(scope, uid):
    """Return what a user is told of a process of that user's, as on a kernel with such a Yama."""
    mount = "mount -t tmpfs none /proc/sys/kernel && cd /proc/sys/kernel && mkdir yama"
    script = f'{mount} && echo {scope} > yama/ptrace_scope && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    with rights_table.subject(become(uid)) as (pid, *_):
        done = subprocess.run(
            [*prefix, sys.executable, "-c", WHY, pid, str(uid)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    intro, _, why = done.stdout.strip().partition(" may not be read: ")
    assert intro == f"process {pid}"
    return why


@pytest.mark.parametrize(("scope", "words"), [(1, "ptrace_scope=0"), (2, "CAP_SYS_PTRACE")])
def test_yama_is_named_where_only_memory_is_refused(scope, words):
    why = why_refused_with_yama(scope, USER)
    assert why.startswith(f"kernel.yama.ptrace_scope is {scope}; run `sudo")
    assert words in why


def test_yama_that_forbids_it_to_everybody():
    assert "forbids it to everybody until the next boot" in why_refused_with_yama(3, 0)


def test_the_table_of_docs_is_what_this_kernel_does():
    page = (rights_table.ROOT / "docs" / "attaching.md").read_text()
    known = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(rights_table.WAYS) + 1:
            known[cells[0]] = [cell == "yes" for cell in cells[1:]]
    found = {who: [ways[way] for way in rights_table.WAYS] for who, ways in rights_table.rows()}
    assert found
    # Opening maps by CAP_PERFMON or CAP_SYS_ADMIN alone is younger than some kernels.
    for who, ways in found.items():
        assert ways[1:] == known[who][1:], who
