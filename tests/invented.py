"""Invented content and invented time."""

import numpy as np

PAGE = 4096


def fill_page(seed):
    """A page of content that depends on nothing but the seed; never change this function."""
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, PAGE, np.uint8).tobytes()


class ScriptedClock:
    """Invented time: waiting applies the writes that are due, and costs nothing.

    Args:
        writes: callables by the ms after which they happen.
    """

    def __init__(self, writes=None):
        self._writes = sorted((writes or {}).items())
        self._now_ns = 1_000_000_000
        self._start_ns = self._now_ns

    def now_ns(self):
        return self._now_ns

    def stall(self, ms):
        """Let time pass without a write."""
        self._now_ns += ms * 1_000_000

    def wait_until(self, deadline_ns):
        self._now_ns = max(self._now_ns, deadline_ns)
        while self._writes and self._start_ns + self._writes[0][0] * 1_000_000 <= deadline_ns:
            self._writes.pop(0)[1]()
