# SPDX-License-Identifier: MIT
"""What x-aggression learns from: the ratios of samples, or their averages' ratio."""

import pytest

from pysampler.migration.convergence import choose_control
from pysampler.migration.settings import Settings


class Guest:
    """Two vCPUs that never sleep, whatever is asked of them."""

    running = True

    def __init__(self):
        self.throttled = None

    def throttled_ns(self):
        return [0, 0]

    def writes(self):
        return [0, 0]

    def throttle(self, percent):
        self.throttled = percent


class Clock:
    ns = 0

    def now_ns(self):
        self.ns += 100_000_000
        return self.ns


def after_two_samples(ratio):
    """Return the guest and the break-even; the second sample has nearly no writes."""
    settings = Settings(has_ring=False)
    settings.set_capabilities([("x-aggression", True)])
    if ratio is not None:
        settings.set_parameters({"x-aggression-ratio": ratio})
    guest = Guest()
    control = choose_control(guest, settings, Clock(), None)
    for written in (4_000_000, 1000):
        control.tick(sent=1_000_000, written=written, dirtied=written, idle=False)
    return guest, control.members()["x_pysampler"]["aggression"]["break-even"]


def test_samples_are_what_is_set_at_first():
    guest, break_even = after_two_samples(None)
    same_guest, same = after_two_samples("samples")
    assert (same, same_guest.throttled) == (break_even, guest.throttled)


def test_a_sample_with_few_writes_raises_the_average_of_ratios_alone():
    guest, break_even = after_two_samples("samples")
    slowed, lower = after_two_samples("averages")
    # The running averages weigh the last sample by w: 1/4 + w (1 - 1/4), and 1 / (4 - 4 w).
    weight = (break_even - 0.25) / 0.75
    assert 0 < weight < 0.5
    assert lower == pytest.approx(1 / (4 * (1 - weight) + weight / 1000))
    assert lower < break_even
    assert slowed.throttled > guest.throttled
