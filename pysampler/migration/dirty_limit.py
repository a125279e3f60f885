# SPDX-License-Identifier: MIT
"""Limits of the dirty rate of vCPUs: QEMU's dirty-limit, and the restraint that came before it.

The rules are in `pysampler.core.convergence`, after system/dirtylimit.c of QEMU 10.0.2 (method
``merged``) and the patches "support dirty restraint on vCPU" v1 of 18 Nov 2021 (``v1``).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pysampler.core.convergence import (
    DirtyLimitSleep,
    dirty_limit_rate,
    dirty_limit_ring_full_us,
    dirty_limit_sleep,
    restraint_first,
    restraint_next,
)
from pysampler.errors import PysamplerError, StateError
from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.units import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from pysampler.guest.guest import Guest
    from pysampler.guest.shared_log import RingUser

_LOOK_S = 1.0  # how often a thread that pauses looks whether it is still wanted

METHODS = ("merged", "v1")


@dataclass(slots=True)
class _Limit:
    """The limit of one vCPU.

    Attributes:
        quota: MiB/s that it may dirty.
        method: of `METHODS`.
        pause_s: v1: how long a percentage is applied before the rate is measured again.
        due_s: time.monotonic() from when on its next measurement may begin.
        percentage: v1: the last one that was not 0, or else 0; None before the first.
    """

    quota: int
    method: str
    pause_s: float
    due_s: float = 0.0
    percentage: int | None = None


class DirtyLimits:
    """The dirty limits of a guest's vCPUs. Any thread may call.

    A thread measures the vCPUs' dirty rates while there is a limit, period by period, and adjusts
    the limited vCPUs after each.

    Args:
        guest: the guest.
        period_ms: returns how long the next period is to be, in ms.
    """

    def __init__(self, guest: Guest, period_ms: Callable[[], int]) -> None:
        self._guest = guest
        self._period_ms = period_ms
        self._n_vcpus = len(guest.writes())
        self._ring_mib = guest.dirty_ring_size * PAGE_SIZE // MIB
        self._ended = threading.Event()
        self._commands = threading.Lock()  # one command at a time; taken before the next one
        self._lock = threading.Lock()  # guards all that follows
        self._limits: dict[int, _Limit] = {}
        self._rates = [0] * self._n_vcpus  # MiB/s, of the last period
        # merged: what each sleeps at a full ring while it is limited. QEMU never resets it, so the
        # next limit of a vCPU begins where the last one ended.
        self._sleep_us = [0] * self._n_vcpus
        self._max_rate = 0  # MiB/s, of any vCPU as long as the guest lives
        self._rings: RingUser | None = None
        self._thread: threading.Thread | None = None
        self._is_measuring = False

    def set(
        self, quota_mib: int, vcpu: int | None = None, method: str = "merged", pause_s: float = 15.0
    ) -> None:
        """Limit vCPUs, or change their limits.

        Args:
            quota_mib: MiB/s that each may dirty; 0 ends its limit.
            vcpu: the vCPU's number; None for all.
            method: ``merged``, QEMU's dirty-limit; ``v1``, the restraint.
            pause_s: of ``v1``: how long a percentage is applied before the next measurement, s.

        Raises:
            StateError: the guest has no dirty rings or no such vCPU, there is no such method, or a
                measurement reads the dirty log.
        """
        if not self._guest.dirty_ring_size:
            raise StateError(
                "dirty page limit feature requires KVM with accelerator property 'dirty-ring-size'"
                " set'"
            )
        vcpus = self._chosen(vcpu)
        if method not in METHODS:
            raise StateError(f"method {method!r} is none of {', '.join(METHODS)}")
        if not quota_mib:
            self.cancel(vcpu)
            return
        with self._commands:
            self._start()
            with self._lock:
                for index in vcpus:
                    self._limit(index, quota_mib, method, pause_s)

    def cancel(self, vcpu: int | None = None) -> None:
        """End limits. If it was the last one, this waits until the period has ended, as in QEMU.

        Args:
            vcpu: the vCPU's number; None for all.

        Raises:
            StateError: there is no such vCPU.
        """
        if not self._guest.dirty_ring_size:
            return
        vcpus = self._chosen(vcpu)
        with self._commands:
            with self._lock:
                for index in vcpus:
                    self._let_go(index)
            self._stop_if_unused()

    def query(self) -> list[tuple[int, int, int]]:
        """Return of each limited vCPU its number, its limit and its present rate, both in MiB/s.

        A rate is 0 until the first period has ended.
        """
        with self._lock:
            return [
                (index, limit.quota, self._rates[index])
                for index, limit in sorted(self._limits.items())
            ]

    @property
    def in_force(self) -> bool:
        """Whether a vCPU is limited."""
        return bool(self._limits)

    def throttle_us(self) -> int:
        """Return the longest sleep of a vCPU at a full ring, in us."""
        with self._lock:
            return max(
                (
                    self._sleep_us[index]
                    for index, limit in self._limits.items()
                    if limit.method == "merged"
                ),
                default=0,
            )

    def ring_full_us(self) -> int:
        """Return in how many us a vCPU fills its ring, at the highest rate so far.

        It is 0 while the vCPUs that run dirty nothing, as in the first period.
        """
        with self._lock:
            rings = self._rings
            if rings is None or not self._guest.running:
                return 0
            rates = [
                rate for rate, asleep in zip(self._rates, rings.asleep(), strict=True) if not asleep
            ]
            mean = sum(rates) // len(rates) if rates else 0
            if not mean:
                return 0
            return dirty_limit_ring_full_us(self._ring_mib, max(self._max_rate, mean))

    def close(self) -> None:
        """End all limits at once; none can be set any more."""
        self._ended.set()
        with self._lock:
            rings = self._rings
        if rings is not None:
            rings.close()  # nobody waits for a vCPU that sleeps
        self.cancel()

    def _chosen(self, vcpu: int | None) -> range:
        if vcpu is None:
            return range(self._n_vcpus)
        if not 0 <= vcpu < self._n_vcpus:
            raise StateError("incorrect cpu index specified")
        return range(vcpu, vcpu + 1)

    def _limit(self, index: int, quota: int, method: str, pause_s: float) -> None:
        limit = self._limits.get(index)
        if limit is not None and limit.method == method:
            limit.quota, limit.pause_s = quota, pause_s
            return
        self._let_go(index)
        self._limits[index] = _Limit(quota, method, pause_s)
        if method == "merged" and self._rings is not None:
            self._rings.sleep_at_full(index, self._sleep_us[index] * 1000)

    def _let_go(self, index: int) -> None:
        limit = self._limits.pop(index, None)
        if limit is None or self._rings is None:
            return
        self._rings.sleep_at_full(index, 0)
        if limit.method == "v1":
            self._guest.throttle(0, index)

    def _start(self) -> None:
        """Have rings and a thread that measures."""
        if self._rings is not None:
            return
        if self._ended.is_set():
            raise StateError("the guest is ending")
        try:
            rings = self._guest.shared_log.rings()
        except PysamplerError as error:
            raise StateError(str(error)) from error
        # A daemon, as the interpreter joins other threads before it ends.
        thread = threading.Thread(
            target=self._serve, args=(rings,), name="dirty-limit", daemon=True
        )
        self._is_measuring = True
        self._rates = [0] * self._n_vcpus
        try:
            thread.start()
        except RuntimeError as error:
            rings.close()
            raise StateError(f"dirty-limit: {error} that measures") from error
        with self._lock:
            self._rings, self._thread = rings, thread

    def _stop_if_unused(self) -> None:
        with self._lock:
            rings, thread = self._rings, self._thread
            if self._limits or rings is None or thread is None:
                return
        self._is_measuring = False
        thread.join()
        rings.close()
        with self._lock:
            self._rings = self._thread = None

    def _serve(self, rings: RingUser) -> None:
        """Measure and adjust, period by period."""
        while self._is_measuring and not self._ended.is_set():
            with self._lock:
                due_s = min((limit.due_s for limit in self._limits.values()), default=0.0)
            pause_s = due_s - time.monotonic()
            if pause_s > 0:
                self._ended.wait(min(pause_s, _LOOK_S))
            else:
                self._measure(rings)

    def _measure(self, rings: RingUser) -> None:
        """Measure for a period and adjust the limited vCPUs."""
        began_ns, before = time.monotonic_ns(), rings.pages()
        if self._ended.wait(self._period_ms() / 1000):
            return
        # Without the wait for vCPUs that sleep, though what they write before that counts.
        ms = max((time.monotonic_ns() - began_ns) // 1_000_000, 1)
        rings.sync()
        counts = [now - then for now, then in zip(rings.pages(), before, strict=True)]
        with self._lock:
            for index, count in enumerate(counts):
                limit = self._limits.get(index)
                is_v1 = limit is not None and limit.method == "v1"
                self._rates[index] = dirty_limit_rate(count, ms, whole_mib=is_v1)
                if limit is not None and limit.due_s <= began_ns / 1e9:
                    if is_v1:
                        self._adjust_v1(index, limit)
                    else:
                        self._adjust(rings, index, limit.quota)

    def _adjust(self, rings: RingUser, index: int, quota: int) -> None:
        self._sleep_us[index], self._max_rate = dirty_limit_sleep(
            quota,
            self._rates[index],
            self._ring_mib,
            DirtyLimitSleep(self._sleep_us[index], self._max_rate),
        )
        rings.sleep_at_full(index, self._sleep_us[index] * 1000)

    def _adjust_v1(self, index: int, limit: _Limit) -> None:
        rate = self._rates[index]
        if limit.percentage is None:
            percentage = limit.percentage = restraint_first(limit.quota, rate)
        else:
            percentage = restraint_next(limit.quota, rate, limit.percentage)
            limit.percentage = percentage or limit.percentage
        self._guest.throttle(percentage, index)
        limit.due_s = time.monotonic() + limit.pause_s
