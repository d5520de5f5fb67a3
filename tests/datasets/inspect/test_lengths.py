from __future__ import annotations

import pytest

from vlm.config.run import Packing
from vlm.datasets.inspect.lengths import padding_by_mode, percentiles


def test_percentiles() -> None:
    assert percentiles([]) == {}
    assert percentiles([7]) == {"mean": 7, "p5": 7, "p50": 7, "p90": 7, "p99": 7, "max": 7}
    assert percentiles(range(1, 101)) == {"mean": 50, "p5": 6, "p50": 51, "p90": 91, "p99": 100, "max": 100}


def test_padding_of_equal_lengths() -> None:
    found = padding_by_mode([100] * 64, [1] * 64, batch_size=8, packing=Packing(max_tokens=250))
    assert found == {"as_they_come": 0.0, "grouped": 0.0, "packed": pytest.approx(0.2)}


def test_padding_of_two_lengths() -> None:
    lengths = [10, 90] * 200
    found = padding_by_mode(lengths, [0] * 400, batch_size=2, packing=Packing(max_tokens=100))
    assert found["as_they_come"] == pytest.approx(0.25 * 80 / 65, abs=0.04)  # half of the pairs are mixed
    assert found["grouped"] < 0.03
    assert found["packed"] < 0.02


def test_padding_follows_the_runs_limits() -> None:
    free = padding_by_mode([10] * 100, [1] * 100, batch_size=4, packing=Packing(max_tokens=100))
    bound = padding_by_mode([10] * 100, [1] * 100, batch_size=4, packing=Packing(max_tokens=100, max_media=5))
    assert (free["packed"], bound["packed"]) == (0.0, pytest.approx(0.5))


def test_few_samples_give_an_estimate_too() -> None:
    assert padding_by_mode([], [], 4) == {}
    assert padding_by_mode([5], [0], batch_size=64) == {
        "as_they_come": 0.0,
        "grouped": 0.0,
        "packed": pytest.approx(3 / 2048),
    }
    assert set(padding_by_mode([5, 9, 7], [0, 0, 0], batch_size=2)) == {"as_they_come", "grouped", "packed"}
