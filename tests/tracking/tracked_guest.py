"""A process that offers its userfaultfd and writes the pages that it is told."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

# Answers each line [vCPU, pages] when that thread has written these pages.
GUEST = """
import ctypes, json, mmap, os, queue, sys, threading
from pysampler import core
from pysampler.tracking.userfaultfd import offer_userfaultfd

offered = offer_userfaultfd() if sys.argv[1] == "offer" else []
fd = os.memfd_create("memory-backend-memfd:pc.ram")
os.ftruncate(fd, 1025 * 4096)
memory = mmap.mmap(fd, 1025 * 4096)
address = core.address_of(memory)

def run(orders, name):
    with open("/proc/thread-self/comm", "w") as comm:
        comm.write(name)
    while True:
        for page in orders.get():
            ctypes.memset(address + page * 4096 + 77, 1, 1)
        os.write(1, b"done\\n")  # print() of two threads mixes

vcpus = [queue.Queue(), queue.Queue()]
for index, orders in enumerate(vcpus):
    threading.Thread(target=run, args=(orders, f"CPU {index}/EMU"), daemon=True).start()
    orders.put([])
for line in sys.stdin:
    index, pages = json.loads(line)
    vcpus[index].put(pages)
"""


class Guest:
    """A process with two threads named as vCPUs; `before` starts it in another way."""

    def __init__(self, offer="offer", before=()):
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", GUEST, offer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        try:
            for _ in range(2):
                self.wait()
            while child := Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text():
                self.pid = int(child)
        except BaseException:
            self.end()
            raise

    def begin(self, vcpu, pages):
        self.process.stdin.write(json.dumps([vcpu, list(pages)]) + "\n")
        self.process.stdin.flush()

    def wait(self):
        assert self.process.stdout.readline() == "done\n"

    def write(self, vcpu, pages):
        self.begin(vcpu, pages)
        self.wait()

    def is_registered(self):
        return " uw" in Path(f"/proc/{self.pid}/smaps").read_text()

    def end(self):
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()
