# SPDX-License-Identifier: MIT
"""What makes a migration converge: a control that slows the guest's vCPUs down.

The arithmetic is in `pysampler.core.convergence`; here it is given what was measured, and what it
says is done to the vCPUs. `Precopy` calls a control in the migration's own thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pysampler.core.convergence import (
    Aggression,
    AggressionTick,
    AutoConverge,
    aggression_tick,
    throttle_check,
    throttle_step,
)
from pysampler.migration.settings import (
    AGGRESSION,
    AGGRESSION_LEVEL,
    AGGRESSION_RATIO,
    DIRTY_LIMIT_METHOD,
)
from pysampler.qemu.migration import THROTTLE_SYNC_MS

if TYPE_CHECKING:
    from pysampler.clock import Clock
    from pysampler.guest.guest import Guest
    from pysampler.migration.dirty_limit import DirtyLimits
    from pysampler.migration.settings import Settings


class Control(Protocol):
    """Makes a migration converge.

    Attributes:
        ticks: whether it is to be told of each window.
    """

    ticks: bool

    def check(self, dirty_bytes: int, sent_bytes: int) -> None:
        """Look at the progress, at a sync that accounts for it.

        Args:
            dirty_bytes: newly dirty since the last such sync, more than a second ago.
            sent_bytes: sent since then.
        """

    def wants_sync(self, now_ms: int, sync_count: int) -> bool:
        """Return whether a sync is due that the threshold has not asked for."""

    def begin_ticks(self, *, sent: int, dirtied: int) -> None:
        """Learn what was before the first window that `tick` is told of.

        Args:
            sent: bytes since the migration began.
            dirtied: bytes of the pages that were written since, and were not waiting to be sent.
        """

    def tick(self, *, sent: int, written: int, dirtied: int, idle: bool) -> None:
        """Look at a window that has ended, once the bulk pass is over.

        Args:
            sent: bytes.
            written: bytes of the distinct pages that were written in it.
            dirtied: bytes of those of them that were not waiting to be sent.
            idle: the sender had nothing to send for a part of it.
        """

    def end(self) -> None:
        """Let the vCPUs run freely, as far as the control ends with the migration."""

    def members(self) -> dict[str, Any]:
        """Return what `MigrationInfo` shows of it, by its attributes' names."""


class NoControl:
    """Leaves the guest alone. What the others have in common."""

    ticks = False

    def check(self, dirty_bytes: int, sent_bytes: int) -> None:
        """Do nothing."""

    def wants_sync(self, now_ms: int, sync_count: int) -> bool:  # noqa: ARG002 - see Control
        """Return False."""
        return False

    def begin_ticks(self, *, sent: int, dirtied: int) -> None:
        """Do nothing."""

    def tick(self, *, sent: int, written: int, dirtied: int, idle: bool) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""

    def members(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


class AutoConvergeControl(NoControl):
    """auto-converge: all vCPUs sleep for a share of their time, which grows in steps."""

    def __init__(self, guest: Guest, settings: Settings, clock: Clock) -> None:
        self._guest = guest
        self._settings = settings
        self._percentage = 0
        self._high_count = 0
        self._looked_ms = clock.now_ns() // 1_000_000  # at dirty-sync-count, for the periodic sync
        self._last_count = 0

    def check(self, dirty_bytes: int, sent_bytes: int) -> None:
        """Throttle the guest one step more if it has dirtied too much twice."""
        parameters = AutoConverge.of(self._settings.parameters())
        due, self._high_count = throttle_check(
            parameters, dirty_bytes, sent_bytes, self._high_count
        )
        if due:
            self._percentage = throttle_step(parameters, self._percentage, dirty_bytes, sent_bytes)
            self._guest.throttle(self._percentage)

    def wants_sync(self, now_ms: int, sync_count: int) -> bool:
        """Return whether there has been none for 5 s, after the bulk pass."""
        if now_ms < self._looked_ms + THROTTLE_SYNC_MS:
            return False
        self._looked_ms = now_ms
        due = sync_count > 1 and sync_count == self._last_count
        self._last_count = sync_count + due
        return due

    def end(self) -> None:
        """End the throttle."""
        self._percentage = 0
        self._guest.throttle(0)

    def members(self) -> dict[str, Any]:
        """Return the percentage, while there is one."""
        return {"cpu_throttle_percentage": self._percentage} if self._percentage else {}


class DirtyLimitControl(NoControl):
    """Capability dirty-limit: all vCPUs get the limit vcpu-dirty-limit. It outlives the migration.

    Whether a step is due is looked at as auto-converge does.
    """

    def __init__(self, limits: DirtyLimits, settings: Settings) -> None:
        self._limits = limits
        self._settings = settings
        self._high_count = 0
        self._quota = 0  # that was set by the last step

    def check(self, dirty_bytes: int, sent_bytes: int) -> None:
        """Set the limit if the guest has dirtied too much twice; a changed one takes effect so."""
        settings = self._settings
        due, self._high_count = throttle_check(
            AutoConverge.of(settings.parameters()), dirty_bytes, sent_bytes, self._high_count
        )
        quota = settings.number("vcpu-dirty-limit")
        if due and (quota != self._quota or not self._limits.in_force):
            self._quota = quota
            self._limits.set(quota, method=str(settings.value(DIRTY_LIMIT_METHOD)))

    def members(self) -> dict[str, Any]:
        """Return the two members about the limit, while it is in force."""
        if not self._limits.in_force:
            return {}
        return {
            "dirty_limit_throttle_time_per_round": self._limits.throttle_us(),
            "dirty_limit_ring_full_time": self._limits.ring_full_us(),
        }


class AggressionControl(NoControl):
    """x-aggression: the vCPUs run for a share of each tick that is learned from the ticks before.

    It begins when the bulk pass has ended.
    """

    ticks = True

    def __init__(self, guest: Guest, settings: Settings, clock: Clock) -> None:
        self._guest = guest
        self._settings = settings
        self._clock = clock
        self._state = Aggression()
        self._target = 1.0
        self._ran = 1.0
        self._passes = (True, True)
        self._stalled_ns = 0
        self._looked = clock.now_ns(), sum(guest.throttled_ns())

    def begin_ticks(self, *, sent: int, dirtied: int) -> None:
        """Count what was before the first tick: progress is that of the whole migration."""
        self._state = self._state._replace(sum_sent=sent, sum_dirtied=dirtied)
        self._looked = self._clock.now_ns(), sum(self._guest.throttled_ns())

    def tick(self, *, sent: int, written: int, dirtied: int, idle: bool) -> None:
        """Learn from a window, and set the share for the next one."""
        now, slept = self._clock.now_ns(), sum(self._guest.throttled_ns())
        n_vcpus = len(self._guest.writes())
        share = (slept - self._looked[1]) / n_vcpus / max(now - self._looked[0], 1)
        # A guest that is paused writes nothing, however long it may: that says nothing of it.
        self._ran = min(max(1 - share, 0.0), 1.0) if self._guest.running else 0.0
        self._stalled_ns += (slept - self._looked[1]) // n_vcpus
        self._looked = now, slept
        level = float(self._settings.value(AGGRESSION_LEVEL))
        averages = self._settings.value(AGGRESSION_RATIO) == "averages"
        # In so short a time nobody can tell what it writes: they slept.
        ran = self._ran if self._ran >= _LEAST_SHARE else 0.0
        result = aggression_tick(
            self._state, AggressionTick(sent, written, dirtied, ran, idle, averages), level
        )
        self._state = result.state
        self._target = result.ran
        self._passes = result.averages_pass, result.sums_pass
        self._guest.throttle(100 * (1 - result.ran) if result.ran >= _LEAST_SHARE else 100)

    def end(self) -> None:
        """End the throttle."""
        self._guest.throttle(0)

    def members(self) -> dict[str, Any]:
        """Return the target, what was measured and both tests, as ``x-pysampler``."""
        return {
            "x_pysampler": {
                "aggression": {
                    "target": self._target,
                    "measured": self._ran,
                    "break-even": self._state.break_even,
                    "averages-pass": self._passes[0],
                    "sums-pass": self._passes[1],
                    "stalled-ms": self._stalled_ns // 1_000_000,
                }
            }
        }


# Below this share the vCPUs sleep until a tick says otherwise, and a tick is no sample.
_LEAST_SHARE = 0.01


def choose_control(guest: Guest, settings: Settings, clock: Clock, limits: DirtyLimits) -> Control:
    """Return the control whose capability is on. The settings take one at most."""
    if settings.enabled("auto-converge"):
        return AutoConvergeControl(guest, settings, clock)
    if settings.enabled("dirty-limit"):
        return DirtyLimitControl(limits, settings)
    if settings.enabled(AGGRESSION):
        return AggressionControl(guest, settings, clock)
    return NoControl()
