# SPDX-License-Identifier: MIT
"""The arithmetic of slowing a guest down: auto-converge, dirty-limit, an aggression level.

All are pure functions of numbers: who measures them and who slows the vCPUs down is elsewhere. The
rules of auto-converge are those of QEMU's migration/ram.c, those of dirty-limit of its
system/dirtylimit.c, both of 10.0.2. Numbers that are out of the bounds named here raise OSError
with EINVAL, or OverflowError where C cannot take them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pysampler._native import ffi, lib
from pysampler.core.seam import check

if TYPE_CHECKING:
    from collections.abc import Mapping

AGGRESSION_TICK_S = 0.1  # the length of an AggressionTick


class AutoConverge(NamedTuple):
    """The parameters of auto-converge, in percent.

    Attributes:
        trigger_threshold: throttle-trigger-threshold, 1 to 100.
        initial: cpu-throttle-initial, 1 to 99.
        increment: cpu-throttle-increment, 1 to 99.
        most: max-cpu-throttle, ``initial`` to 99.
        tailslow: cpu-throttle-tailslow.
    """

    trigger_threshold: int
    initial: int
    increment: int
    most: int
    tailslow: bool

    @classmethod
    def of(cls, parameters: Mapping[str, float | bool | str]) -> AutoConverge:
        """Return those among the migration parameters, by QEMU's names."""
        return cls(
            int(parameters["throttle-trigger-threshold"]),
            int(parameters["cpu-throttle-initial"]),
            int(parameters["cpu-throttle-increment"]),
            int(parameters["max-cpu-throttle"]),
            bool(parameters["cpu-throttle-tailslow"]),
        )


class ThrottleCheck(NamedTuple):
    """What a throttle check has found.

    Attributes:
        step_due: whether the guest is to be slowed down further now.
        high_count: what the next check needs.
    """

    step_due: bool
    high_count: int


def throttle_check(
    settings: AutoConverge, dirty_bytes: int, sent_bytes: int, high_count: int
) -> ThrottleCheck:
    """Look whether a migration makes too little progress; see ps_throttle_check.

    Args:
        settings: of which the trigger threshold decides.
        dirty_bytes: what became dirty since the last check, which is a second ago at least.
        sent_bytes: what has been sent since then.
        high_count: as the last check has returned it, 0 at first.
    """
    count = ffi.new("uint32_t *", high_count)
    due = check(
        lib.ps_throttle_check(_auto_converge(settings), dirty_bytes, sent_bytes, count),
        "throttle_check",
    )
    return ThrottleCheck(bool(due), int(count[0]))


def throttle_step(
    settings: AutoConverge, percentage: int, dirty_bytes: int, sent_bytes: int
) -> int:
    """Return the percentage of the time that vCPUs sleep after a step; see ps_throttle_step.

    Args:
        settings: the parameters.
        percentage: the present one; 0 where nothing is throttled yet.
        dirty_bytes: what became dirty, as for the check that made the step due.
        sent_bytes: what has been sent meanwhile.

    Returns:
        1 to 99.
    """
    step = lib.ps_throttle_step(_auto_converge(settings), percentage, dirty_bytes, sent_bytes)
    return check(step, "throttle_step")


def _auto_converge(settings: AutoConverge) -> Any:
    return ffi.new("struct ps_auto_converge *", settings._asdict())


def dirty_limit_rate(n_pages: int, ms: int, *, whole_mib: bool = False) -> int:
    """Return a dirty rate in MiB/s, rounded down; see ps_dirty_limit_rate.

    Args:
        n_pages: pages of 4096 bytes, at most 2^52.
        ms: in how long, at least 1.
        whole_mib: drop what is left of a MiB first, as the dirty restraint does.
    """
    return check(lib.ps_dirty_limit_rate(n_pages, ms, whole_mib), "dirty_limit_rate")


def dirty_limit_ring_full_us(ring_mib: int, rate: int) -> int:
    """Return how long a dirty ring takes to be full, in us.

    Args:
        ring_mib: MiB of pages for which it has entries, rounded down; at most 2^30.
        rate: MiB/s at which pages become dirty, at least 1.
    """
    return check(lib.ps_dirty_limit_ring_full_us(ring_mib, rate), "dirty_limit_ring_full_us")


class DirtyLimitSleep(NamedTuple):
    """How a limited vCPU is slowed down.

    Attributes:
        sleep_us: us that it sleeps each time that its ring is full.
        max_rate: MiB/s, the highest rate so far of any vCPU; the next step of any vCPU needs it.
    """

    sleep_us: int
    max_rate: int


def dirty_limit_sleep(
    quota: int, current: int, ring_mib: int, now: DirtyLimitSleep
) -> DirtyLimitSleep:
    """Adjust how long a limited vCPU sleeps; see ps_dirty_limit_sleep.

    Args:
        quota: MiB/s that it may dirty, at least 1.
        current: MiB/s that it dirties.
        ring_mib: MiB of pages for which its ring has entries, rounded down; at most 2^30.
        now: its present sleep, and the highest rate so far of any vCPU; both 0 at first.
    """
    rate = ffi.new("uint64_t *", now.max_rate)
    sleep = lib.ps_dirty_limit_sleep(quota, current, ring_mib, now.sleep_us, rate)
    return DirtyLimitSleep(check(sleep, "dirty_limit_sleep"), int(rate[0]))


def restraint_first(quota: int, current: int) -> int:
    """Return the percentage of the time that a vCPU sleeps at first, by the dirty restraint.

    The restraint is the first version of dirty-limit: "support dirty restraint on vCPU" v1, of
    18 Nov 2021.

    Args:
        quota: MiB/s that it may dirty.
        current: MiB/s that it dirties.
    """
    return check(lib.ps_restraint_first(quota, current), "restraint_first")


def restraint_next(quota: int, current: int, last: int) -> int:
    """Return the next percentage of the time that a vCPU sleeps, by the dirty restraint.

    Args:
        quota: MiB/s that it may dirty.
        current: MiB/s that it dirties.
        last: the last percentage that was not 0; 0 where there was none.
    """
    return check(lib.ps_restraint_next(quota, current, last), "restraint_next")


class Aggression(NamedTuple):
    """What an aggression level has learned of a migration; see struct ps_aggression.

    The mail that it is after (qemu-devel, 20 Dec 2011) has the level and the two tests.

    Attributes:
        break_even: at this share of the time the guest dirties as much as is sent.
        factor: lowers the target while progress is too little, 0.05 to 1.
        mean_ran_sent, mean_written: running averages of the samples, bytes.
        mean_sent, mean_dirtied: running averages of the ticks after the first sample, bytes.
        sum_sent, sum_dirtied: of all ticks, bytes; to begin with, what was before the first one.
        sampled, judged: whether there has been a sample, and a tick after it, yet.
    """

    break_even: float = 0.0
    factor: float = 1.0
    mean_ran_sent: float = 0.0
    mean_written: float = 0.0
    mean_sent: float = 0.0
    mean_dirtied: float = 0.0
    sum_sent: float = 0.0
    sum_dirtied: float = 0.0
    sampled: bool = False
    judged: bool = False


class AggressionTick(NamedTuple):
    """What has been measured in a tick of `AGGRESSION_TICK_S`; bytes are at most 10^18.

    Attributes:
        sent: bytes sent.
        written: bytes of the pages that were written in it, to be sent again or still to be sent.
        dirtied: bytes of those alone that have to be sent because of it.
        ran: the share of the tick that the vCPUs ran, 0 to 1.
        idle: the sender had nothing to send, so ``sent`` says nothing of the link.
        averages: the break-even is a ratio of averages, which ticks with few writes do not pull up;
            else an average of ratios, as in the mail.
    """

    sent: float
    written: float
    dirtied: float
    ran: float
    idle: bool = False
    averages: bool = False


class AggressionTarget(NamedTuple):
    """What a tick has led to.

    Attributes:
        state: for the next tick.
        ran: the share of the time for which the vCPUs are to run, 0 to 1.
        averages_pass: the running average of what is sent is above that of what is dirtied, by the
            weight of one tick at least (1 %).
        sums_pass: more has been sent in all than was dirtied.
    """

    state: Aggression
    ran: float
    averages_pass: bool
    sums_pass: bool


def aggression_tick(state: Aggression, tick: AggressionTick, level: float) -> AggressionTarget:
    """Learn from a tick; see ps_aggression_tick.

    Args:
        state: what has been learned so far.
        tick: what was measured.
        level: 0 leaves the guest what it can have while anything is gained, 1 leaves it nothing.
    """
    learned = ffi.new("struct ps_aggression *", state._asdict())
    ran = ffi.new("double *")
    passed = check(
        lib.ps_aggression_tick(
            learned, ffi.new("struct ps_aggression_tick *", tick._asdict()), level, ran
        ),
        "aggression_tick",
    )
    values = {name: getattr(learned, name) for name in Aggression._fields}
    values.update(sampled=bool(learned.sampled), judged=bool(learned.judged))
    return AggressionTarget(
        Aggression(**values),
        float(ran[0]),
        bool(passed & lib.PS_AGGRESSION_AVERAGES_PASS),
        bool(passed & lib.PS_AGGRESSION_SUMS_PASS),
    )
