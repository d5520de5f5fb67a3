"""Intervals, groups and paired comparisons of numbers that are made of rows."""

import json

import numpy as np
import pytest

from vlm.common.errors import DataError
from vlm.tasks.scoring.statistics import TOTALS, Metric, averaged, difference, interval, per_item, restored

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
    "change",
    [
        {"rows": [[1], ["a"], [2]]},
        {"rows": [[], [], []]},
        {"rows": [[1], [None], [1]]},
        {"units": ["x", "x", "y"]},
        {"total": "sum"},
        {"units": ["x"]},
        {"label": None, "units": None},
        {"total": "f1"},
        {"total": "ratio"},
        {"rows": [[1], [2]]},
        {"rows": [[10**400], [1], [1]]},
    ],
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


def test_totals_of_sums_are_drawn_like_those_of_rows() -> None:
    """What only needs sums is drawn by how often each distinct row occurs; another name for the total is not."""
    rng = np.random.default_rng(2)
    first, second = (np.asarray(rng.random((400, 3)) < p, dtype=float) for p in ([0.4, 0.4, 0.4], [0.55, 0.4, 0.3]))
    TOTALS["f1 by rows"] = TOTALS["f1"]
    try:
        fast, slow = (
            difference(Metric("f1", NAMES, first, name), Metric("f1", NAMES, second, name), draws=1500)
            for name in ("f1", "f1 by rows")
        )
    finally:
        del TOTALS["f1 by rows"]
    assert (fast.first, fast.second) == (slow.first, slow.second)
    assert list(fast.interval) == pytest.approx(list(slow.interval), abs=0.015) and fast.p == pytest.approx(
        slow.p, abs=0.01
    )


@pytest.mark.parametrize(
    ("spread", "p", "low", "high"), [(0.0, 0.0363, 0.00417, 0.0625), (0.3, 0.5113, -0.02638, 0.05329)]
)
def test_p_and_bounds_are_those_of_scipy(spread: float, p: float, low: float, high: float) -> None:
    """Recorded with scipy 1.17.1 and 200,000 draws.

    ``permutation_test((y, x), mean of y - mean of x, permutation_type="samples")``, and
    ``bootstrap((y - x,), mean, method="percentile")``.
    """
    k = np.arange(480)
    first = (k * 7 % 13 < 6).astype(float)
    second = np.where(k % 5 == 0, k * k % 11 < 5, first).astype(float)
    first, second = first + np.sin(k) * spread, second + np.cos(k) * spread - (0.02 if spread else 0)
    names = [str(n) for n in k]
    found = difference(per_item("a", names, first), per_item("a", names, second), draws=6000)
    assert found.p == pytest.approx(p, abs=0.02)
    assert list(found.interval) == pytest.approx([low, high], abs=0.006)


def test_several_runs_are_stored_as_one() -> None:
    runs = [per_item("a", ["x", "y"], [1, 0], groups=["g", "g"]), per_item("a", ["x", "y"], [0, 0], groups=["g", "g"])]
    assert averaged(runs).rows.tolist() == [[0.5], [0.0]] and averaged(runs).by_group() == {"g": (0.25, 2)}
    f1 = [Metric("f", ["x"], np.ones((1, 3)) * k, "f1") for k in (1, 2)]
    assert averaged(f1) is f1[0]
