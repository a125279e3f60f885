# SPDX-License-Identifier: MIT
"""``pysampler guest`` processes that migrate, killed and signalled as a test needs it."""

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time

import numpy as np

from pysampler.host.qmp_client import QmpClient

START_S = 20  # only a failing test waits for these
END_S = 5
MIB = 1 << 20


class Process:
    """One guest and its QMP session.

    Args:
        directory: for its sockets.
        name: of its QMP socket.
        words: of ``pysampler guest``.
    """

    def __init__(self, directory, name, *words):
        self.qmp_path = f"{directory}/{name}.qmp"
        self.qmp = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pysampler", "guest", *words, "--qmp", f"unix:{self.qmp_path}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        try:
            assert select.select([self._process.stdout], [], [], START_S)[0]
            line = self._process.stdout.readline()
            assert line, self._process.stderr.read().decode()
            self.ready = json.loads(line)
            counters = self.ready["counters"]
            self._counters = self._map(counters["fd"])[:: counters["slot-bytes"] // 8]
            self.ram = self._map(self.ready["blocks"][0]["fd"])
            self.qmp = QmpClient(f"unix:{self.qmp_path}", END_S)
        except BaseException:
            self.close()
            raise

    def _map(self, fd):
        with open(f"/proc/{self.pid}/fd/{fd}", "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint64)

    @property
    def pid(self):
        return self._process.pid

    def ask(self, command, **arguments):
        given = {name.replace("_", "-"): value for name, value in arguments.items()}
        return self.qmp.execute(command, given or None)

    def set(self, *capabilities, **parameters):
        if capabilities:
            states = [{"capability": name, "state": True} for name in capabilities]
            self.ask("migrate-set-capabilities", capabilities=states)
        if parameters:
            self.ask("migrate-set-parameters", **parameters)

    def info(self):
        return self.ask("query-migrate")

    def wait_for(self, *statuses, limit_s=30):
        """Wait for one of these; return query-migrate's reply."""
        deadline = time.monotonic() + limit_s
        while (info := self.info()).get("status") not in statuses:
            assert time.monotonic() < deadline, info
            time.sleep(0.005)
        return info

    def wait_for_pass(self, number):
        deadline = time.monotonic() + 30
        while self.info().get("ram", {}).get("dirty-sync-count", 0) < number:
            assert time.monotonic() < deadline, self.info()
            time.sleep(0.002)

    def run_state(self):
        return self.ask("query-status")["status"]

    def writes_go_on(self):
        before, deadline = self._counters.sum(), time.monotonic() + END_S
        while self._counters.sum() == before:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self._process.wait(END_S)

    def ended(self):
        """Wait for its end, which must be soon; return the exit code and what it said."""
        _, errors = self._process.communicate(timeout=END_S)
        return self._process.returncode, errors.decode()

    def end(self):
        """End it by SIGTERM; return as `ended` does."""
        self.signal(signal.SIGTERM)
        return self.ended()

    def close(self):
        if self.qmp is not None:
            self.qmp.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()
