"""What the picture of a prediction shows is what the prediction says."""

from pathlib import Path

import numpy as np
import pytest

from pysampler import Measurement, Precopy, predict

pytest.importorskip("matplotlib", reason="the plot extra is not installed")
from pysampler.prediction.plot import draw_prediction

GOLDEN = Path(__file__).parents[1] / "golden"
VECTOR = Measurement.from_json((GOLDEN / "vector-32gib-memcached.json").read_text())


def drawn(rates, limits, model="qemu", **members):
    precopy = Precopy(**members)
    prediction = predict(VECTOR, rates, limits, precopy=precopy, model=model)
    return prediction, draw_prediction(VECTOR, prediction, precopy).axes


@pytest.mark.parametrize("model", ["qemu", "published"])
def test_each_limit_has_its_line_of_times_against_bandwidth(model):
    prediction, (_, times, _) = drawn([1e9, 8e9], [100, 3000, None], model)
    lines = times.get_lines()
    assert [line.get_label() for line in lines] == ["100 ms", "3 s", "unlimited"]
    found = [line.get_ydata()[end] for end in (0, -1) for line in lines]
    told = [cell.total_ms / 1000 for cell in prediction.cells]
    assert found == pytest.approx(told, rel=0.01)
    for line in lines:
        assert (np.diff(line.get_ydata()) < 0).all()


def test_the_migration_that_is_drawn_ends_when_the_prediction_says():
    # Reading 20 GiB of zero pages takes most of the time here.
    prediction, (_, _, rounds) = drawn(["5GB/s"], ["333ms"], zero_page_us=5.0)
    (end,) = [line for line in rounds.get_lines() if line.get_label().startswith("ends after")]
    assert end.get_xdata()[0] == pytest.approx(prediction.cells[0].total_ms / 1000, rel=0.01)
    assert rounds.get_title().endswith("333 ms")


def test_the_intervals_that_are_drawn_are_those_that_are_told():
    prediction = predict(VECTOR, [1e9, 8e9], [300], members=20, seed=5)
    _, times, _ = draw_prediction(VECTOR, prediction, Precopy()).axes
    (band,) = times.collections
    drawn_at = band.get_paths()[0].vertices
    for cell in prediction.cells:
        at_rate = np.isclose(drawn_at[:, 0], cell.bandwidth * 8e-9, rtol=1e-9)
        ends = drawn_at[at_rate, 1]
        assert [ends.min(), ends.max()] == pytest.approx(
            [end / 1000 for end in cell.total_ms_interval], rel=1e-6
        )
