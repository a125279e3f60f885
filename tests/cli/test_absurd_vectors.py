"""Vectors that the format allows and no guest ever gave: an answer or one line, and JSON for all."""

import json

import numpy as np
import pytest

from pysampler import Measurement, predict
from pysampler.cli import main
from pysampler.prediction.advise import advise
from pysampler.prediction.curve import Counts
from pysampler.vector.measurement import MAX_PERIODS

MOST_PAGES = 1 << 52
PERIODS = [125, 250, 375, 500, 750, 1000, 1500, 2000, 3000, 4001, 6000, 8000]
N = len(PERIODS)


def vector(dirty, sampled, zero, total, periods=PERIODS, **members):
    return {
        "page-size": 4096,
        "periods": periods,
        "n-dirty-pages": dirty,
        "n-sampled-pages": sampled,
        "n-zero-pages": zero,
        "n-total-pages": total,
        **members,
    }


def codecs(**figures):
    return {"x-pysampler": {"compression": {"codecs": {"x": {"all": figures}}}}}


VECTORS = {
    "nothing": vector([], 0, 0, 0, []),
    "no samples": vector([0] * N, 0, 0, 10_000),
    "no pages": vector([0] * N, 0, 0, 0),
    "one page": vector([1] * N, 1, 0, 1),
    "one sample of many, clean": vector([0] * N, 1, 0, 10_000),
    "one sample of many, zero": vector([0] * N, 1, 1, 10_000),
    "one sample of most": vector([1] * N, 1, 0, MOST_PAGES),
    "more samples than pages": vector(list(range(N)), 16, 0, 1),
    "one period": vector([3], 100, 10, 10_000, [125]),
    "one short period": vector([3], 100, 10, 10_000, [1]),
    "one long period": vector([90], 100, 10, 10_000, [1 << 40]),
    "one clean period": vector([0], 100, 10, 10_000, [125]),
    "periods far apart": vector([1, 50, 90], 100, 0, 10_000, [1, 2, 1 << 40]),
    "too many periods": vector([0] * 60_000, 5000, 100, 1 << 20, list(range(1, 60_001))),
    "all zero": vector([0] * N, 100, 100, 10_000),
    "all zero, dirty": vector(list(range(N)), 100, 100, 10_000),
    "dirty beyond what is not zero": vector([5 * i + 40 for i in range(N)], 100, 90, 10_000),
    "all dirty at once": vector([100] * N, 100, 0, 10_000),
    "back and forth": vector([90, 0] * (N // 2), 100, 0, 10_000),
    "falling": vector([90 - 8 * i for i in range(N)], 100, 0, 10_000),
    "all at the end": vector([0] * (N - 1) + [MOST_PAGES], MOST_PAGES, 0, MOST_PAGES),
    "most pages, some samples": vector([3 * i for i in range(N)], 100, 10, MOST_PAGES),
    "most pages, each tracked": vector([MOST_PAGES // 99 * i for i in range(N)], MOST_PAGES, 0, MOST_PAGES),
    "most vCPUs": vector(
        list(range(N)), 100, 0, 10_000, mode="dirty-ring",
        **{"vcpu-dirty-rate": [{"id": i, "dirty-rate": 1 << 62} for i in range(MAX_PERIODS)]},
    ),
    "exact periods of 1 ns": vector(
        list(range(N)), 100, 0, 10_000, **{"x-pysampler": {"periods-ns": list(range(1, N + 1))}}
    ),
    "exact periods of centuries": vector(
        list(range(N)), 100, 0, 10_000,
        **{"x-pysampler": {"periods-ns": [(1 << 62) - N + i for i in range(N)]}},
    ),
    "slow codec": vector(
        list(range(N)), 100, 0, 10_000, **codecs(**{"ratio-mean": 2.0, "bytes-per-s": 1e3})
    ),
    "fast codec": vector(
        list(range(N)), 100, 0, 10_000, **codecs(**{"ratio-mean": 1e-6, "bytes-per-s": 1e15})
    ),
}  # fmt: skip


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


@pytest.fixture(autouse=True)
def few_members(monkeypatch):
    """What is absurd is so for each of the guests that are drawn: some of them will do."""
    for function in (predict, advise):
        monkeypatch.setitem(function.__kwdefaults__, "members", 20)


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(
    "verb", [("predict",), ("predict", "--model=published"), ("advise",), ("advise", "--quick")]
)
@pytest.mark.parametrize(
    "cell", [("1", "125ms"), ("1000000000000000", "125ms"), ("1", "unlimited")]
)
def test_an_absurd_vector_gets_an_answer_or_one_line(capsys, tmp_path, name, verb, cell):
    path = tmp_path / "vector.json"
    path.write_text(json.dumps(VECTORS[name]))
    words = (*verb, str(path), "--bandwidth", cell[0], "--downtime", cell[1])
    code = main([*words, "--json"])
    out, err = capsys.readouterr()
    if code == 0:
        assert isinstance(json.loads(out, parse_constant=refuse_constant), dict)
        assert main([*words]) == 0
        text = capsys.readouterr().out
        assert "nan" not in text
        assert "inf" not in text
    else:
        assert out == ""
        assert err.count("\n") == 1
        # The quick rule needs a limit; nothing else here is the user's fault.
        assert code == (2 if cell[1] == "unlimited" and "--quick" in verb else 1)


@pytest.mark.parametrize("step", [1, 7919])  # a straight line, and one that no modes explain
def test_of_very_many_periods_some_are_fitted(step):
    measurement = Measurement.from_dict(
        vector(
            [i * step % 5000 for i in range(MAX_PERIODS)], 5000, 100, 1 << 20,
            list(range(1, MAX_PERIODS + 1)),
        )
    )  # fmt: skip
    counts = Counts.of(measurement)
    assert len(counts.seconds) == len(counts.dirty) < 300
    points = dict(zip(measurement.periods, measurement.n_dirty_pages, strict=True))
    assert [points[ms] for ms in np.rint(counts.seconds * 1000).astype(int)] == list(counts.dirty)
    assert counts.seconds[0] == 0.001
    assert counts.seconds[-1] == MAX_PERIODS / 1000
    cell = predict(measurement, "1Gbps", "300ms").cells[0]
    assert 0 <= cell.p_converge <= 1


def test_a_link_of_any_speed_can_be_compressed(capsys, tmp_path):
    path = tmp_path / "vector.json"
    path.write_text(json.dumps(VECTORS["fast codec"]))
    words = ["advise", str(path), "--bandwidth", "1Gbps", "--downtime", "300ms"]
    assert main([*words, "--link", "1000000000000000", "--json"]) == 0
    remedies = {advice["remedy"] for advice in json.loads(capsys.readouterr().out)["advice"]}
    assert "compression-x" in remedies
