"""Replays what was recorded of a QEMU's migrations against two emulated guests.

Each recorded command is sent in its turn, once the events that came before it have come. Replies
and events must be those that were recorded, but for times and counts. A guest ends where the QEMU
did.
"""

import json
import os
import re
import select
import socket
import time
from contextlib import ExitStack

from qmp_fakes import Client

from pysampler.guest.process import GuestProcess

TIMEOUT_S = 30  # for what takes a migration's time; only a failing test waits for it
LONGEST_PAUSE_S = 1.0  # between two commands, however long the recorder paused

# Times and counts. A number is a number there, and no more is said.
VOLATILE = {
    "setup-time", "total-time", "downtime", "expected-downtime", "cpu-throttle-percentage",
    "dirty-limit-ring-full-time", "dirty-limit-throttle-time-per-round", "dirty-sync-count",
    "pages-per-second", "downtime-bytes", "remaining", "mbps", "transferred", "precopy-bytes",
    "duplicate", "dirty-pages-rate", "normal-bytes", "normal", "current-rate",
}  # fmt: skip
# Lines of `info migrate` that come only when their count is not 0.
_SOMETIMES = re.compile(r"(dirty pages rate|precopy ram|downtime ram): .*\r\n")
_COUNT = re.compile(
    r"^(total time|expected downtime|downtime|setup|transferred ram|throughput|remaining ram"
    r"|duplicate|normal|normal bytes|dirty sync count|pages-per-second|cpu throttle percentage"
    r"|dirty-limit throttle time|dirty-limit ring full time): [0-9.]+",
    re.MULTILINE,
)
_RATE = re.compile(r"current rate \d+")
# What asks and changes nothing may be asked again, until the state is the recorded one.
_QUERIES = ("query-migrate", "query-status", "query-vcpu-dirty-limit")
# Of another room, and answered as a guest with all modes answers.
_LEFT_OUT = ("qmp_capabilities", "calc-dirty-rate", "query-dirty-rate")


def settled(value):
    """Return a value of JSON without times and counts; members keep their order."""
    if isinstance(value, dict):
        return [
            (key, "a number" if key in VOLATILE and _is_number(member) else settled(member))
            for key, member in value.items()
            if key != "timestamp"
        ]
    if isinstance(value, list):
        return [settled(item) for item in value]
    if isinstance(value, str) and "\r\n" in value:
        return _RATE.sub("current rate N", _COUNT.sub(r"\1: N", _SOMETIMES.sub("", value)))
    return value


def _is_number(value):
    return type(value) in (int, float)


def is_pass(message):
    return message.get("event") == "MIGRATION_PASS"


class Side:
    """One guest and its monitor."""

    def __init__(self, words, directory, side):
        self.guest = GuestProcess(*words, "--qmp", f"unix:{directory}/{side}.qmp")
        self.client = Client(self.guest.ready["qmp"])
        self.client.socket.settimeout(TIMEOUT_S)
        self.client.negotiate()
        self.events = []

    def close(self):
        self.client.close()
        self.guest.close()

    def read(self):
        """Read one message; return it if it is a reply."""
        message = json.loads(self.client.line())
        if "event" not in message:
            return message
        self.events.append(message)
        return None

    def ask(self, request):
        """Return the reply to a request, and the events that came before it."""
        self.client.send(json.dumps(request).encode())
        before = len(self.events)
        while (reply := self.read()) is None:
            pass
        return reply, self.events[before:]

    def read_to_the_end(self):
        """Read events until the guest closes the connection."""
        while line := self.client.line():
            self.events.append(json.loads(line))

    def exit_code(self):
        """Return the exit code of the guest, which is about to end."""
        with open(os.pidfd_open(self.guest.pid), "rb") as pidfd:
            assert select.select([pidfd], [], [], TIMEOUT_S)[0], "the guest does not end"
        ended = os.waitid(os.P_PID, self.guest.pid, os.WEXITED | os.WNOWAIT)
        assert ended.si_code == os.CLD_EXITED
        return ended.si_status


class Replay:
    """Two guests, to whom sections are replayed one after the other.

    Args:
        directory: for their sockets.
        words: of ``pysampler guest``, for each side.
    """

    def __init__(self, directory, words):
        self._directory = directory
        self._words = words
        self._sides = {}
        self._expected = {}  # the events that should have come so far
        self._stack = ExitStack()
        self._port = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for side in self._sides.values():
            side.close()
        self._stack.close()

    def _start(self, name):
        if name in self._sides:
            self._sides[name].close()
        # A greeting begins each side, or begins it anew.
        self._sides[name] = Side(self._words[name], self._directory, name)
        self._expected[name] = []

    def _real(self, message):
        """Return a recorded request as it is to be sent."""
        text = json.dumps(message)
        for name in ("src", "dst"):
            text = text.replace(f"SOCK.{name}", f"{self._directory}/{name}.sock")
        if ":PORT" in text:
            text = text.replace(":PORT", f":{self._unwilling()}")
        return json.loads(text)

    def _recorded(self, message):
        """Return what came as it would have been recorded."""
        text = json.dumps(message)
        for name in ("src", "dst"):
            text = text.replace(f"{self._directory}/{name}.sock", f"SOCK.{name}")
        return settled(json.loads(text))

    def _unwilling(self):
        """Return the port of a peer that does not accept, and whose queue is full."""
        if self._port is None:
            listener = self._stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            for _ in range(3):
                waiting = self._stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(listener.getsockname())
            self._port = listener.getsockname()[1]
        return self._port

    def run(self, lines):
        """Replay lines; compare what comes with what was recorded."""
        waiting = {"src": [], "dst": []}
        sent_at = {}
        asked_to_quit = set()
        begin = None
        for line in lines:
            if line.remark:
                self._end(line)
            elif "QMP" in line.message:
                asked_to_quit.discard(line.side)
                self._start(line.side)
            elif line.sent:
                if line.message["execute"] in _LEFT_OUT:
                    waiting[line.side].append(None)
                    continue
                self._catch_up()
                if begin is not None:
                    time.sleep(min(LONGEST_PAUSE_S, max(0, line.t_ms - begin) / 1000))
                begin = line.t_ms
                waiting[line.side].append(line)
                if line.message["execute"] == "quit":
                    asked_to_quit.add(line.side)
                sent_at[line.side] = len(self._expected[line.side])
            elif "event" not in line.message:
                command = waiting[line.side].pop(0)
                if command is not None:
                    before = self._expected[line.side][sent_at[line.side] :]
                    self._exchange(command, line, before)
                    begin = line.t_ms
            else:
                if line.message["event"] == "SHUTDOWN" and line.side not in asked_to_quit:
                    # The recorder did not note down that it ended a QEMU by a quit.
                    self._catch_up()
                    reply, _ = self._sides[line.side].ask({"execute": "quit"})
                    assert reply == {"return": {}}
                self._expected[line.side].append(line.message)
        self._catch_up()
        for name in self._sides:
            self._compare_events(name)

    def _end(self, line):
        """A QEMU has ended, or has told its exit code."""
        side = self._sides[line.side]
        if line.remark == "connection closed":
            side.read_to_the_end()
            self._compare_events(line.side)
        else:
            assert f"exit code {side.exit_code()}" == line.remark

    def _compare_events(self, name):
        events = self._sides[name].events
        expected = [settled(one) for one in self._expected[name] if not is_pass(one)]
        assert [settled(one) for one in events if not is_pass(one)] == expected
        passes = [one["data"]["pass"] for one in events if is_pass(one)]
        # Each migration counts from 1; nobody sets the count but it.
        for earlier, later in zip([0, *passes], passes, strict=False):
            assert later in (earlier + 1, 1)

    def _exchange(self, command, expected, before):
        side = self._sides[command.side]
        request, wanted = self._real(command.message), settled(expected.message)
        deadline = time.monotonic() + TIMEOUT_S
        reply, events = side.ask(request)
        while self._recorded(reply) != wanted and _is_query(command.message):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
            reply, _ = side.ask(request)
        assert self._recorded(reply) == wanted, (command.side, command.message)
        # What a command does at once is told before its reply.
        for event in before:
            assert settled(event) in [settled(one) for one in events], (command.message, event)

    def _catch_up(self):
        """Wait until each side has sent the events that came before, in their order."""
        for name, side in self._sides.items():
            expected = self._expected[name]
            named = [one for one in expected if not is_pass(one)]
            # Passes after the last of the others; how many came before it is a count.
            last = max((i for i, one in enumerate(expected) if not is_pass(one)), default=-1)
            least = max((one["data"]["pass"] for one in expected[last + 1 :]), default=0)
            while True:
                seen = [one for one in side.events if not is_pass(one)]
                passes = [one["data"]["pass"] for one in side.events if is_pass(one)]
                if len(seen) >= len(named) and max(passes, default=0) >= least:
                    break
                assert side.read() is None
            assert [settled(one) for one in seen] == [settled(one) for one in named]


def _is_query(message):
    if message["execute"] == "human-monitor-command":
        return message["arguments"]["command-line"].startswith("info ")
    return message["execute"] in _QUERIES
