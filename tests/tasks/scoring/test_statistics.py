"""Intervals, groups and paired comparisons of numbers that are made of rows."""

import json

import numpy as np
import pytest

from vlm.common.errors import DataError
from vlm.tasks.scoring.statistics import TOTALS, Metric, difference, interval, per_item, restored

NAMES = [str(k) for k in range(400)]
RNG = np.random.default_rng(0)


def test_a_mean_is_drawn_alike_by_counts_and_by_picks() -> None:
    values = RNG.integers(0, 4, 400) / 3
    rows = np.stack([values, np.ones(400)], axis=1)
    by_counts, by_picks = interval([per_item("a", NAMES, values)]), interval([Metric("a", NAMES, rows, "ratio")])
    assert by_counts is not None and by_picks is not None
    assert by_counts == pytest.approx(by_picks, abs=0.006)
    width = 1.96 * values.std() / 20
    assert by_counts == pytest.approx([values.mean() - width, values.mean() + width], abs=0.006)


def test_the_interval_of_several_runs_is_that_of_their_mean() -> None:
    runs = [per_item("a", NAMES, RNG.random(400)) for _ in range(3)]
    mean = per_item("a", NAMES, np.mean([run.rows[:, 0] for run in runs], axis=0))
    assert interval(runs) == pytest.approx(interval([mean]))


def test_totals() -> None:
    rows = np.asarray([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert TOTALS["f1"](rows) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert TOTALS["ratio"](np.asarray([[3.0, 4], [0, 2]])) == 0.5
    assert TOTALS["f1"](rows * 0) == 0.0 == TOTALS["ratio"](np.zeros((2, 2)))


def test_groups_and_storing() -> None:
    metric = per_item("a", ["x", "y", "z"], [1, 0, 0.5], groups=["one", "two", None])
    assert metric.by_group() == {"one": (1.0, 1), "two": (0.0, 1)}
    again = restored(json.loads(json.dumps(metric.stored())))
    assert again.value() == metric.value() == 0.5 and again.by_group() == metric.by_group()
    assert per_item("a", [], []).value() is None and interval([per_item("a", [], [])]) is None


@pytest.mark.parametrize(
    "change", [{"rows": [[1], ["a"], [2]]}, {"total": "sum"}, {"units": ["x"]}, {"label": None, "units": None}]
)
def test_values_of_another_form_are_one_message(change: dict) -> None:
    stored = per_item("a", ["x", "y", "z"], [1, 0, 0.5]).stored() | change
    with pytest.raises(DataError):
        restored(stored, "a.jsonl")


def test_a_difference_is_found_and_none_is_invented() -> None:
    first = (RNG.random(400) < 0.5).astype(float)
    better = np.where(RNG.random(400) < 0.15, 1.0, first)
    found = difference(per_item("a", NAMES, first), per_item("a", NAMES[::-1], better[::-1]))
    assert found.second - found.first == pytest.approx(better.mean() - first.mean())
    assert found.p < 0.01 and found.interval[0] > 0
    assert sum(v > 0 for v in found.changed.values()) == int((better > first).sum())
    same = difference(per_item("a", NAMES, first), per_item("a", NAMES, first))
    assert same.p == 1.0 and list(same.interval) == [0, 0]


def test_p_is_small_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    runs = [[(rng.random(60) < 0.5).astype(float) for _ in range(2)] for _ in range(60)]
    values = [difference(*(per_item("a", NAMES[:60], run) for run in pair), draws=200).p for pair in runs]
    assert np.mean(np.asarray(values) < 0.1) < 0.25 and max(values) > 0.6


def test_other_questions_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="1 only in the first, 1 only in the second"):
        difference(per_item("a", ["x", "y"], [1, 0]), per_item("a", ["x", "z"], [1, 0]))
    with pytest.raises(DataError, match="other questions"):
        difference(per_item("a", ["x"], [1]), Metric("a", ["x"], np.ones((1, 3)), "f1"))
