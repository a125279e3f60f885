# SPDX-License-Identifier: MIT
"""What each way of reading another process needs, found by trying: `python tests/rights_table.py`.

Prints the table of docs/attaching.md. Needs root, setpriv and unshare, and nothing of pysampler.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from subject import without_preloads

ROOT = Path(__file__).parents[1]

# What is tried on a process: its pid, an address in it, a file it holds and where that is mapped.
ATTEMPTS = """
import ctypes, json, os, sys
pid, address, fd, mapped = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
libc = ctypes.CDLL(None, use_errno=True)

def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")

class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def read_memory():
    byte = ctypes.create_string_buffer(1)
    here, there = Vector(ctypes.addressof(byte), 1), Vector(address, 1)
    called(libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))

def opened(name, flags=os.O_RDONLY):
    os.close(os.open(f"/proc/{pid}/{name}", flags))

def copy_descriptor():
    pidfd = os.pidfd_open(pid)
    got = libc.syscall(438, pidfd, fd, 0)
    called(got)

attempts = {
    "maps": lambda: opened("maps"),
    "pagemap": lambda: opened("pagemap"),
    "process_vm_readv": read_memory,
    "fd": lambda: (os.listdir(f"/proc/{pid}/fd"), opened(f"fd/{fd}")),
    "map_files": lambda: opened(f"map_files/{mapped}"),
    "pidfd_getfd": copy_descriptor,
    "clear_refs": lambda: opened("clear_refs", os.O_WRONLY),
    "mem": lambda: opened("mem"),
}
found = {}
for name, attempt in attempts.items():
    try:
        attempt()
        found[name] = True
    except OSError as error:
        found[name] = False
print(json.dumps(found))
"""

SUBJECT = """
import ctypes, mmap, os, sys
if "undumpable" in sys.argv:
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
memory = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE)
memory[:1] = b"x"
fd = os.memfd_create("rights")
os.ftruncate(fd, 4096)
shared = mmap.mmap(fd, 4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
mapped = next(line.split()[0] for line in open("/proc/self/maps") if "memfd:rights" in line) \
    if "undumpable" not in sys.argv else "0-0"
print(address, fd, mapped, flush=True)
sys.stdin.read()
"""

WAYS = (
    "maps", "pagemap", "process_vm_readv", "fd", "map_files", "pidfd_getfd", "clear_refs", "mem",
)  # fmt: skip
PYTHON = "/usr/bin/python3"
USER, OTHER = 65534, 65533

# Who reads a process of uid 65533 that has no capabilities: uid, capabilities.
READERS = (
    (OTHER, ()),
    (USER, ()),
    (USER, ("sys_ptrace",)),
    (USER, ("dac_read_search",)),
    (USER, ("dac_override",)),
    (USER, ("perfmon",)),
    (USER, ("checkpoint_restore",)),
    (USER, ("sys_admin",)),
    (USER, ("sys_ptrace", "dac_read_search")),
    (USER, ("sys_ptrace", "dac_override")),
    (USER, ("sys_ptrace", "checkpoint_restore")),
    (USER, ("sys_ptrace", "sys_admin")),
    (USER, ("sys_ptrace", "dac_read_search", "checkpoint_restore")),
    (USER, ("sys_ptrace", "dac_read_search", "sys_admin")),
    (0, ()),
    (0, ("sys_ptrace",)),
    (0, ("sys_ptrace", "dac_read_search")),
    (0, ("all",)),
)


def become(uid, capabilities=()):
    """Return the command line that runs what follows it as a user with these capabilities only."""
    kept = "".join(f",+{name}" for name in capabilities)
    if capabilities == ("all",):
        return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    return [
        "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", f"--inh-caps=-all{kept}",
        f"--ambient-caps=-all{kept}", f"--bounding-set=-all{kept}",
    ]  # fmt: skip


@contextlib.contextmanager
def subject(prefix, *arguments):
    """Run a process to be read; yields the words that ATTEMPTS wants."""
    process = subprocess.Popen(
        [*prefix, PYTHON, "-I", "-c", SUBJECT, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=without_preloads(),
    )  # fmt: skip
    with process:
        yield [str(process.pid), *process.stdout.readline().split()]


def attempt(prefix, words):
    """Return which ways are open to whoever ``prefix`` makes of this process."""
    done = subprocess.run(
        [*prefix, PYTHON, "-I", "-c", ATTEMPTS, *words],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    return json.loads(done.stdout)


def rows():
    """Yield who reads, and which ways were open."""
    with subject(become(OTHER)) as words:
        for uid, capabilities in READERS:
            name = {OTHER: "its owner", USER: "another user", 0: "root"}[uid]
            kept = " + ".join(capabilities) or "no capability"
            yield f"{name}, {kept}", attempt(become(uid, capabilities), words)
        outside = ["unshare", "--user", "--map-root-user"]
        yield "root of a user namespace beside it", attempt(outside, words)
        owner = ["setpriv", f"--reuid={OTHER}", f"--regid={OTHER}", "--clear-groups"]
        yield "its owner, root of a user namespace", attempt([*owner, *outside], words)
    with subject(become(OTHER), "undumpable") as words:
        for uid, capabilities in READERS:
            some = (("sys_ptrace",), ("sys_ptrace", "dac_read_search"), ("all",))
            if uid == OTHER or capabilities in some:
                name = {OTHER: "its owner", USER: "another user", 0: "root"}[uid]
                kept = " + ".join(capabilities) or "no capability"
                yield f"not dumpable: {name}, {kept}", attempt(become(uid, capabilities), words)
    with subject([]) as words:
        yield "process of root with all: root, no capability", attempt(become(0), words)


def main():
    """Print the table."""
    print("| who reads | " + " | ".join(WAYS) + " |")
    print("|---" * (len(WAYS) + 1) + "|")
    for who, found in rows():
        print(f"| {who} | " + " | ".join("yes" if found[way] else "-" for way in WAYS) + " |")


if __name__ == "__main__":
    sys.exit(main())
