# SPDX-License-Identifier: MIT
"""Two guests of this process, one of which migrates to the other over a unix socket."""

import threading
import time

import numpy as np

from pysampler.guest import BlockSpec, Content, Guest, Phases, allocate
from pysampler.guest.phases import assign
from pysampler.migration.migration import Migration

ENDED = ("completed", "failed", "cancelled")


def make_guest(
    *words, vcpus=1, pages=1024, blocks=(), zero=0.5, seed=1, incoming=False, content=Content.RANDOM
):
    specs = [BlockSpec("pc.ram", pages * 4096), *blocks]
    ram = allocate(specs, zero=1.0 if incoming else zero, content=content, seed=seed)
    return Guest(ram, make_phases(words, vcpus), seed, incoming=incoming)


def make_phases(words, vcpus):
    """Return what `make_guest` is given: workloads, or lengths and workloads of phases."""
    if words and isinstance(words[0], tuple):
        phases = ((length_ns, assign([word], vcpus)) for length_ns, word in words)
        return Phases(tuple(phases), repeat=False)
    return Phases.steady(assign(list(words) or ["idle"], vcpus))


class End:
    """One guest with its migration and the events that it sent."""

    def __init__(self, guest, **options):
        self.guest = guest
        self.failures = []
        self.migration = Migration(guest, failed=self.failures.append, **options)
        self.events = []
        self._more = threading.Condition()
        self.migration.send_events_to(self._note)
        self.migration.set_capabilities([("events", True)])

    def _note(self, name, data=None):
        with self._more:
            self.events.append((name, *(data or {}).values()))
            self._more.notify_all()

    def wait_for(self, event, seconds=30):
        with self._more:
            assert self._more.wait_for(lambda: event in self.events, seconds), (event, self.events)

    @property
    def status(self):
        info = self.migration.info()
        return "none" if info is None else info.status

    def wait_until_ended(self, seconds=60):
        deadline = time.monotonic() + seconds
        while self.status not in ENDED:
            assert time.monotonic() < deadline, self.migration.info()
            time.sleep(0.002)
        return self.migration.info()

    def close(self):
        assert self.migration.close()
        self.guest.close()


class Pair:
    """Source and destination; the destination listens, and stays paused when `stop` is said."""

    def __init__(self, folder, source, destination, stop=True, **options):
        self.uri = f"unix:{folder}/migration"
        self.source = End(source, **options)
        self.destination = End(destination)
        if stop:
            destination.stop()
        else:
            destination.cont()
        self.destination.migration.incoming(self.uri)

    def migrate(self):
        self.source.migration.migrate(self.uri)

    def migrated(self, seconds=60):
        """Migrate; return the source's last reply once both have ended."""
        self.migrate()
        reply = self.source.wait_until_ended(seconds)
        self.destination.wait_until_ended(seconds)
        return reply

    def close(self):
        self.source.close()
        self.destination.close()


def contents(guest):
    return [np.frombuffer(block.memory, dtype=np.uint64) for block in guest.blocks]


def same_ram(one, other):
    return all(
        np.array_equal(mine, its) for mine, its in zip(contents(one), contents(other), strict=True)
    )
