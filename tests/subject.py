"""A process to be sampled: does what its stdin says, line by line, and answers each with a line."""

import mmap
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

LENGTH = 32 << 20


def without_preloads():
    """Return an environment for a process that is to be looked at.

    AddressSanitizer, preloaded, maps terabytes of its own, which would be found as guest RAM.
    """
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@contextmanager
def subject(setup):
    """Start a Python process that runs `setup`; yield a function that runs more lines in it.

    Each call returns what the code put into `answer`, as text.
    """
    process = subprocess.Popen(
        [sys.executable, __file__, setup],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=without_preloads(),
    )

    def run(code=""):
        process.stdin.write(code.replace("\n", ";") + "\n")
        process.stdin.flush()
        return process.stdout.readline().rstrip("\n")

    run.pid = process.pid
    run.process = process
    try:
        run()
        yield run
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def pagemap(pid, address, length):
    """The pagemap entries of a range, without the page frame numbers (kernels may move pages)."""
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as entries:
        entries.seek(address // 4096 * 8)
        raw = entries.read(length // 4096 * 8)
    return [raw[i + 7] for i in range(0, len(raw), 8)]


def main():
    import ctypes

    names = {"mmap": mmap, "os": os, "ctypes": ctypes, "LENGTH": LENGTH, "answer": ""}
    names["address_of"] = lambda m: ctypes.addressof(ctypes.c_char.from_buffer(m))
    exec(sys.argv[1], names)  # noqa: S102 (the test's own text)
    for line in sys.stdin:
        exec(line, names)  # noqa: S102 (the same)
        print(names["answer"], flush=True)


if __name__ == "__main__":
    main()
