import pytest

from pysampler.core import Effect, Pattern
from pysampler.errors import UsageError
from pysampler.guest import Workload
from pysampler.guest.kv import KvOptions
from pysampler.guest.workload import parse_count, parse_fraction


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("uniform", {"pattern": Pattern.UNIFORM, "wps": 100_000, "ws": None, "off_ms": 0}),
        ("uniform:wps=500k", {"wps": 500_000}),
        ("uniform:wps=3.5M,ws=512M,block=vga", {"wps": 3_500_000, "ws": 512 << 20, "block": "vga"}),
        ("uniform:wps=max", {"wps": 0}),
        ("uniform", {"lag_ms": 20}),
        ("zipf:lag=0", {"lag_ms": 0}),
        ("kv:lag=50ms,mix=C", {"lag_ms": 50}),
        ("burst:on=1s,off=1s,lag=1s", {"lag_ms": 1000, "on_ms": 1000}),
        ("hotcold:hot=10%,hits=90%", {"pattern": Pattern.HOTCOLD, "hot": 0.1, "hits": 0.9}),
        ("hotcold:hot=.5,hits=1", {"hot": 0.5, "hits": 1.0}),
        ("zipf:theta=0.99", {"pattern": Pattern.ZIPF, "theta": 0.99}),
        ("sweep", {"pattern": Pattern.SWEEP}),
        ("idle", {"pattern": Pattern.IDLE}),
        ("kv:mix=b,keys=1k,value=64-4K", {"kv": KvOptions("B", 1000, (64, 4096))}),
        ("burst:on=200ms,off=800ms", {"pattern": Pattern.UNIFORM, "on_ms": 200, "off_ms": 800}),
        ("burst:on=1s,off=2s,wps=5k", {"wps": 5000, "on_ms": 1000, "off_ms": 2000}),
        ("burst:on=1s,off=2s,of=zipf:theta=2,wps=7", {"theta": 2.0, "wps": 7, "off_ms": 2000}),
        ("silent", {"pattern": Pattern.UNIFORM, "effect": Effect.SILENT}),
        ("read:of=sweep", {"pattern": Pattern.SWEEP, "effect": Effect.READ}),
        ("silent:of=sweep", {"pattern": Pattern.SWEEP, "effect": Effect.SILENT}),
        ("free:of=burst:on=1s,off=1s,of=sweep:ws=8K", {"effect": Effect.FREE, "ws": 8192, "on_ms": 1000}),
    ],
)  # fmt: skip
def test_a_workload_is_read(text, members):
    workload = Workload.parse(text)
    assert workload.text == text
    assert {name: getattr(workload, name) for name in members} == members


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no such workload; there is idle, uniform"),
        ("random", "'random': no such workload"),
        ("uniform:hot=10%", "'hot=10%' is none of its options, which are wps=, ws=, block="),
        ("uniform:wps", "'wps' is none of its options"),
        ("uniform:wps=1,wps=2", "wps= twice"),
        ("uniform:wps=0", "wps: 0 is not from 1 to"),
        ("uniform:wps=1G", "wps: '1G' is not a number"),
        ("uniform:wps=2000M", "wps: 2000M is not from 1"),
        ("uniform:lag=20", "lag: 20 is not from 0ms to 1s"),
        ("uniform:lag=1001ms", "lag: 1001ms is not from 0ms to 1s"),
        ("uniform:lag=-1ms", "lag"),
        ("uniform:wps=max,lag=0", "lag= with wps=max"),
        ("silent:of=uniform:lag=1ms,wps=max", "lag= with wps=max"),
        ("uniform:ws=5000", "ws: 5000 is no whole number of pages"),
        ("uniform:ws=0", "ws: 0 is no whole number"),
        ("hotcold:hot=0", "no page would be hot"),
        ("hotcold:hits=101%", "hits: 101% is more than all"),
        ("hotcold:hits=nan", "is not a fraction"),
        ("zipf:theta=0", "theta: '0' is not from 0.01 to 10"),
        ("zipf:theta=1%", "theta: '1%' is not from"),
        ("kv:mix=E", "mix=E is none of A, B, C, D, F"),
        ("burst", "needs on= and off="),
        ("burst:on=200ms", "needs on= and off="),
        ("burst:on=0,off=1s", "on: 0 is not from 1ms to 24h"),
        ("burst:on=1s,off=1s,of=nonsense", "'nonsense': no such workload|no such workload"),
        ("silent:of=silent:of=silent:of=silent:of=idle", "no such workload"),
    ],
)
def test_a_wrong_workload_is_refused_by_name(text, message):
    with pytest.raises(UsageError, match=message):
        Workload.parse(text)


@pytest.mark.parametrize(("text", "count"), [("7", 7), ("500k", 500_000), ("1.5M", 1_500_000)])
def test_counts_have_factors_of_1000(text, count):
    assert parse_count(text, "n") == count


@pytest.mark.parametrize("text", ["", "-1%", "60 %", "1e-1", "\u0661%"])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(UsageError, match="--zero: "):
        parse_fraction(text, "--zero")
