"""Main effects on small grids that are computed by hand, and the Pareto front."""

from __future__ import annotations

import numpy as np
import pytest

from vlm.runners.study.report.effects import main_effects, pareto
from vlm.runners.study.statistics import Numbers, student
from vlm.tasks.scoring.statistics import Metric, per_item

from .made import axis

A, B = axis("a", ["1", "2"]), axis("b", ["x", "y", "z"])


def table(values: dict[str, float | list[float]], axes: str = "ab") -> dict[tuple[tuple[str, str], ...], Numbers]:
    """Combination, a letter per axis (blank: not there) -> value, or one per seed."""
    keys = {text: tuple((a, label) for a, label in zip(axes, text) if label != " ") for text in values}
    seeds = {text: v if isinstance(v, list) else [v] for text, v in values.items()}
    return {keys[text]: Numbers(dict(enumerate(seeds[text]))) for text in values}


def test_a_full_grid_gives_plain_means() -> None:
    a, b = main_effects([A, B], table({"1x": 1, "1y": 2, "1z": 6, "2x": 3, "2y": 4, "2z": 5}))
    assert [(v.label, v.mean, v.effect, v.count) for v in a.levels] == [
        ("1", pytest.approx(3), pytest.approx(-0.5), 3), ("2", pytest.approx(4), pytest.approx(0.5), 3),
    ]  # fmt: skip
    assert [v.mean for v in b.levels] == pytest.approx([2, 3, 5.5]) and [v.effect for v in b.levels] == pytest.approx(
        [-1.5, -0.5, 2]
    )
    assert a.balanced and (a.settings, b.settings) == (3, 2)
    assert a.levels[0].bounds is None, "one seed and no questions: nothing is known"


def test_a_missing_cell_makes_no_value_better() -> None:
    """Without 2z, the best setting, plain means are 3 and 2.5; in both settings of both, 2 is better by 1."""
    (a, b) = main_effects([A, B], table({"1x": 1, "1y": 2, "1z": 6, "2x": 2, "2y": 3}))
    assert not b.balanced and a.balanced and a.settings == 2, "setting z has one value of a, which says nothing"
    assert a.levels[1].effect - a.levels[0].effect == pytest.approx(1)
    assert [v.mean for v in a.levels] == pytest.approx([1.5, 2.5])
    # by least squares: x, y, z are 1.5, 2.5 and 6 + 0.5 in the mean of both settings
    assert [v.mean for v in b.levels] == pytest.approx([1.5, 2.5, 6.5]) and b.settings == 2


def test_values_that_share_no_setting_are_left_out() -> None:
    b = main_effects([A, B], table({"1x": 1, "1y": 2, "2z": 6}))
    assert [(e.axis, [v.label for v in e.levels], list(e.left_out)) for e in b] == [("b", ["x", "y"], ["z"])]
    assert main_effects([A], table({"1": 1.0}, "a")) == [] == main_effects([A], {})


def test_conditional_axes() -> None:
    """c is there with a = 2 only: a compares inside settings of b, averaged over c; c is compared where it is."""
    c = axis("c", ["p", "q"], when={"a": ("2",)})
    grid = {"1x ": 1, "1y ": 2, "2xp": 4, "2xq": 6, "2yp": 5, "2yq": 9}
    a, b, own = main_effects([A, axis("b", ["x", "y"]), c], table(grid, "abc"))
    assert (
        [v.mean for v in a.levels] == pytest.approx([1.5, 6])
        and a.settings == 2
        and [v.count for v in a.levels] == [2, 4]
    )
    assert [v.mean for v in own.levels] == pytest.approx([4.5, 7.5]) and own.settings == 2
    assert [v.effect for v in b.levels] == pytest.approx([-5 / 6, 5 / 6]), "three settings: 1, 2p and 2q"


def test_the_interval_of_an_effect() -> None:
    """Seeds differ by 2 in each of four combinations: variance 2, with 4 degrees of freedom; weights are a quarter."""
    (a, _) = main_effects([A, axis("b", ["x", "y"])], table({"1x": [0, 2], "1y": [0, 2], "2x": [4, 6], "2y": [4, 6]}))
    assert a.levels[1].effect == pytest.approx(2) and a.levels[1].bounds is not None
    assert a.levels[1].bounds[1] - 2 == pytest.approx(student(4) * np.sqrt(2 * 4 / 16 / 2))


@pytest.mark.parametrize("total", ["mean", "ratio"])
def test_questions_count_as_well(total: str) -> None:
    """2 wins three of four questions by 1 and loses one: the mean effect is a quarter, its questions -+1/2."""
    one, two = np.asarray([0.0, 0, 0, 1] * 50), np.asarray([1.0, 1, 1, 0] * 50)

    def metric(values: np.ndarray) -> Metric:
        names = [str(k) for k in range(200)]
        return (
            per_item("m", names, values)
            if total == "mean"
            else Metric("m", names, np.stack([values, values * 0 + 1], 1), total)
        )

    (a,) = main_effects([A], {(("a", label),): Numbers.of({0: metric(v)}) for label, v in (("1", one), ("2", two))})
    assert a.levels[1].effect == pytest.approx(0.25) and a.levels[1].bounds is not None
    half = 1.97 * np.sqrt(0.1875 / 199)  # values 1/2 and -1/2 with the mean 1/4: variance 3/16
    assert a.levels[1].bounds[1] - 0.25 == pytest.approx(half, rel=0.02 if total == "mean" else 0.12)


def test_pareto() -> None:
    points = [(1.0, 5.0), (2.0, 5.0), (2.0, 7.0), (3.0, 6.0), (4.0, 9.0), (1.0, 5.0)]
    assert pareto(points) == [0, 5, 2, 4], "the same twice is on the front twice"
    assert pareto([(c, -s) for c, s in points], higher=False) == [0, 5, 2, 4]
    assert pareto([]) == []
