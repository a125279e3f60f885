# SPDX-License-Identifier: MIT
"""The pace and the throttle of a vCPU as the C core keeps them, each under an invented clock."""

from pysampler._native import ffi, lib


class Pace:
    """Writes due at a steady rate; see ps_pace_due."""

    CARRY_NS: int = lib.PS_PACE_CARRY_NS

    def __init__(self, writes_per_second: int, lag_ns: int = 0) -> None:
        self._struct = ffi.new("struct ps_pace *", (writes_per_second, lag_ns))

    def due(self, now_ns: int) -> int:
        """Return how many writes are due at ``now_ns``, counted from 0."""
        return int(lib.ps_pace_due(self._struct, now_ns))

    def missed(self, absent_ns: int, left: int = 0) -> int:
        """Return the writes to do after a throttle's sleep; see ps_pace_missed."""
        return int(lib.ps_pace_missed(self._struct, absent_ns, left))


class Throttle:
    """The turns of a throttle; see ps_throttle_end."""

    def __init__(self) -> None:
        self._struct = ffi.new("struct ps_throttle *")

    def set(self, sleep_ns: int) -> None:
        """Change the time of each sleep; 0 ends the throttle."""
        self._struct.sleep_ns = sleep_ns

    def turn(self, now_ns: int) -> tuple[bool, int]:
        """Return whether the vCPU sleeps at ``now_ns``, and when that changes; 2^64 - 1: never."""
        end_ns = int(lib.ps_throttle_end(self._struct, now_ns))
        return bool(self._struct.asleep), end_ns
