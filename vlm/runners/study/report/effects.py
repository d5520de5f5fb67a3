"""What an axis does over the rest of the grid, and which combinations are worth their cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vlm.runners.study.statistics import RESAMPLES, Numbers, interval
from vlm.tasks.scoring.statistics import aligned, resampled

if TYPE_CHECKING:
    from vlm.runners.study.cells import Axis

Key = tuple[tuple[str, str], ...]
Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LevelEffect:
    """A value of an axis.

    Attributes:
        label: of the value.
        mean: over the settings of the other axes.
        effect: ``mean`` less the mean of all values of the axis.
        bounds: of the 95 % interval of ``effect``; None: nothing is known about it.
        count: combinations that have the value and were used.
    """

    label: str
    mean: float
    effect: float
    bounds: tuple[float, float] | None
    count: int


@dataclass(frozen=True)
class AxisEffect:
    """A main effect.

    Attributes:
        axis: name.
        levels: those that could be compared, in the order of the file.
        settings: of the other axes, over which means were taken.
        balanced: whether every setting has every value; otherwise means are adjusted for the settings that a value has.
        left_out: labels that share no setting with the others.
    """

    axis: str
    levels: Sequence[LevelEffect]
    settings: int
    balanced: bool
    left_out: Sequence[str] = ()


def main_effects(axes: Sequence[Axis], numbers: Mapping[Key, Numbers]) -> list[AxisEffect]:
    """The main effect of each axis with two values or more that can be compared.

    Values are compared inside settings of the other axes, so that a missing combination makes no value better or worse:
    the model is one term for the value and one for the setting, by least squares. Where none is missing this is the
    plain mean. Axes that are there only with the axis are averaged over; an axis that is not everywhere is compared
    where it is.

    Args:
        axes: of the study.
        numbers: of one score, by combination.
    """
    numbers = {key: found for key, found in numbers.items() if found.values}
    spread = _Spread(numbers)
    found = [_main_effect(axis, axes, list(numbers), spread) for axis in axes]
    return [effect for effect in found if effect is not None]


def _main_effect(axis: Axis, axes: Sequence[Axis], keys: Sequence[Key], spread: _Spread) -> AxisEffect | None:
    groups: dict[tuple[str, Key], list[Key]] = {}
    apart = {axis.name, *_below(axis.name, axes)}
    for key in keys:
        if (label := dict(key).get(axis.name)) is not None:
            rest = tuple(pair for pair in key if pair[0] not in apart)
            groups.setdefault((label, rest), []).append(key)
    linked = _linked(list(groups))
    if len({label for label, _ in linked}) < 2:
        return None
    labels = [level.label for level in axis.levels if any(level.label == label for label, _ in linked)]
    settings = sorted({rest for _, rest in linked})
    design = np.zeros((len(linked), len(labels) + len(settings)))
    for row, (label, rest) in enumerate(linked):
        design[row, labels.index(label)] = design[row, len(labels) + settings.index(rest)] = 1.0
    solved = np.linalg.pinv(design)
    means = solved[: len(labels)] + solved[len(labels) :].mean(axis=0)
    effects = means - means.mean(axis=0)
    columns = np.zeros((len(linked), len(spread.keys)))
    for row, group in enumerate(linked):
        for key in groups[group]:
            columns[row, spread.keys.index(key)] = 1 / len(groups[group])
    means, effects = means @ columns, effects @ columns
    levels = []
    for row, label in enumerate(labels):
        effect = float(effects[row] @ spread.values)
        count = sum(len(groups[group]) for group in linked if group[0] == label)
        mean = float(means[row] @ spread.values)
        levels.append(LevelEffect(label, mean, effect, interval(effect, spread.parts(effects[row])), count))
    lost = [level.label for level in axis.levels if level.label not in labels]
    tried = [label for label in lost if any(label == found for found, _ in groups)]
    return AxisEffect(axis.name, levels, len(settings), len(linked) == len(labels) * len(settings), tried)


def _below(name: str, axes: Sequence[Axis]) -> set[str]:
    """Axes that are there only with some value of an axis."""
    found = {axis.name for axis in axes if name in axis.when}
    return found | {other for child in found for other in _below(child, axes)}


def _linked(groups: Sequence[tuple[str, Key]]) -> list[tuple[str, Key]]:
    """The largest set of (value, setting) in which each value can be compared with each other through shared settings.

    Settings with one value say nothing and are left out.
    """
    by_setting: dict[Key, list[str]] = {}
    for label, rest in groups:
        by_setting.setdefault(rest, []).append(label)
    sets: list[set[str]] = []
    for labels in by_setting.values():
        if len(labels) > 1:
            touched = [found for found in sets if found & set(labels)]
            sets = [found for found in sets if found not in touched] + [set(labels).union(*touched)]
    best = max(sets, key=len, default=set())
    return [(label, rest) for label, rest in groups if label in best and len(by_setting[rest]) > 1]


class _Spread:
    """The variance of weighted sums of combinations; that between seeds is pooled over the combinations."""

    def __init__(self, numbers: Mapping[Key, Numbers]) -> None:
        self.keys = list(numbers)
        self.values = np.asarray([np.mean(list(n.values.values())) for n in numbers.values()])
        self.counts = np.asarray([len(n.values) for n in numbers.values()])
        squares = [
            ((np.asarray(list(n.values.values())) - m) ** 2).sum() for n, m in zip(numbers.values(), self.values)
        ]
        self.squares = np.asarray(squares)
        self.rows, self.drawn = self._questions(list(numbers.values()))

    def _questions(self, numbers: Sequence[Numbers]) -> tuple[Weights | None, Weights | None]:
        """Means over seeds by question [combinations, questions], or resampled numbers [combinations, draws]."""
        runs = [metric for n in numbers for metric in n.metrics.values()]
        if len(runs) != self.counts.sum() or not runs:
            return None, None
        same = aligned(runs)
        if not len(same[0].units):
            return None, None
        places = np.split(np.arange(len(runs)), np.cumsum(self.counts)[:-1])
        if same[0].total == "mean":
            values = np.stack([run.rows[:, 0] for run in same])
            return np.stack([values[place].mean(axis=0) for place in places]), None
        drawn = resampled(same, RESAMPLES)
        return None, np.stack([drawn[place].mean(axis=0) for place in places])

    def parts(self, weights: Weights) -> list[tuple[float, float]]:
        """Variances of a weighted sum, with degrees of freedom: between seeds, and between questions."""
        used = weights != 0
        free = float((self.counts[used] - 1).sum())
        pooled = self.squares[used].sum() / free if free else 0.0
        result = [(float(pooled * (weights[used] ** 2 / self.counts[used]).sum()), free)]
        if self.rows is not None:
            values = weights @ self.rows
            count = len(values)
            result.append((float(values.var(ddof=1)) / count if count > 1 else 0.0, max(count - 1.0, 1.0)))
        if self.drawn is not None:
            result.append((float((weights @ self.drawn).var(ddof=1)), RESAMPLES - 1.0))
        return result


def pareto(points: Sequence[tuple[float, float]], higher: bool = True) -> list[int]:
    """Places of the (cost, score) than which none is as cheap and as good, and better in one; by rising cost.

    Args:
        points: cost and score of each.
        higher: whether higher scores are better.
    """
    sign = 1 if higher else -1
    ranked = [(cost, sign * score) for cost, score in points]
    front = [
        k
        for k, (cost, score) in enumerate(ranked)
        if not any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in ranked)
    ]
    return sorted(front, key=lambda k: (ranked[k][0], k))
