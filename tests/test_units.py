"""Figures for people."""

import pytest

from pysampler.units import format_rate, parse_rate


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (1.25e9, "10 Gbps"),
        (2**27, "1 Gibps"),
        (50 * 2**20, "50 MiB/s"),
        (626_463_950, "5012 Mbps"),
        (2.43e9, "19440 Mbps"),
        (123_456_789_012, "987.7 Gbps"),
        (1e13, "80000 Gbps"),
        (1e15, "8000000 Gbps"),
    ],
)
def test_a_rate_is_printed_in_its_roundest_unit_and_can_be_read_again(rate, text):
    assert format_rate(rate) == text
    assert parse_rate(text) == pytest.approx(rate, rel=5e-4)
