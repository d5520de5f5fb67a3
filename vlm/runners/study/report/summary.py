"""``summarise``: the results of cells as the rows of one table, with everything that is said about them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from vlm.common.errors import ConfigError, unknown
from vlm.runners.study.report.effects import AxisEffect, Key, main_effects, pareto
from vlm.runners.study.results import CellResult, Cost, State
from vlm.runners.study.statistics import (
    Change,
    Estimate,
    Numbers,
    adjusted,
    difference,
    estimate,
    gain,
    pooled_differences,
    pooled_means,
)

if TYPE_CHECKING:
    from vlm.runners.study.cells import Study

LOSS = "loss"
TAIL = 10
"""The final training loss is the mean over the last tenth of what was logged."""
STATES: tuple[State, ...] = ("done", "trained", "running", "interrupted", "pruned", "failed", "missing")
"""Order in which states are told."""
COSTS = {"trained": "trained parameters", "flops": "FLOPs", "minutes": "minutes"}
SAME = 0.02
"""Costs that differ by no more than this share are the same."""


@dataclass(frozen=True)
class Measure:
    """A number that every cell may have: a metric of a dataset, or the loss (no dataset)."""

    dataset: str
    label: str
    unit: str = "share"
    better: str = "higher"

    @property
    def name(self) -> str:
        """As it is written in ``score:``."""
        return f"{self.dataset}/{self.label}" if self.dataset else self.label

    def text(self, value: float | None, signed: bool = False) -> str:
        """A number as people read it; a ``signed`` one is a difference, of shares in points."""
        if value is None or not math.isfinite(value):
            return "-"
        if self.unit == "share":
            return f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
        return f"{value:+.3g}" if signed else f"{value:.4g}"

    @property
    def sign(self) -> str:
        """What numbers are of."""
        return "%" if self.unit == "share" else ""


@dataclass(frozen=True)
class Row:
    """A combination.

    Attributes:
        key, name: which.
        levels: axis -> label.
        changed: axes on which it is not as the reference.
        states: state -> number of its cells.
        messages: (seed, message) of cells that failed.
        score: the number that the table is ordered by; None: no cell has it yet.
        values: the same by seed.
        controls: image control -> the same number with other images.
        unseen: controls with which it is as good as with the right images, as far as intervals show.
        others: name of a measure -> its number with the right images.
        change: difference to the reference; None for the reference itself, and where nothing can be compared.
        cost: mean over the cells that were trained; None: none was.
        fronts: costs (keys of ``COSTS``) on whose Pareto front it is.
    """

    key: Key
    name: str
    levels: Mapping[str, str]
    changed: frozenset[str]
    states: Mapping[State, int]
    messages: Sequence[tuple[int, str]] = ()
    score: Estimate | None = None
    values: Mapping[int, float] = field(default_factory=dict)
    controls: Mapping[str, Estimate] = field(default_factory=dict)
    unseen: frozenset[str] = frozenset()
    others: Mapping[str, Estimate] = field(default_factory=dict)
    change: Change | None = None
    cost: Cost | None = None
    fronts: frozenset[str] = frozenset()

    @property
    def blind(self) -> bool:
        """Whether the right images do not make it better than wrong ones or none, as far as intervals show."""
        return bool(self.unseen)

    def costs(self, name: str) -> float:
        """One of ``COSTS``; 0: not known."""
        if self.cost is None:
            return 0.0
        return {"trained": float(self.cost.trained), "flops": self.cost.flops, "minutes": self.cost.seconds / 60}[name]


@dataclass(frozen=True)
class Summary:
    """A study as far as it is known.

    Attributes:
        study: which.
        measure: what the table is ordered by.
        others: further measures.
        controls: image controls, without the right images.
        rows: best first, those without number last.
        reference: row that others are compared with; None: it has no cell.
        effects: of the axes on the measure.
        counts: state -> cells.
        comparisons: with the reference, which p is adjusted for.
        results: what all of it comes from.
    """

    study: Study
    measure: Measure
    others: Sequence[Measure]
    controls: Sequence[str]
    rows: Sequence[Row]
    reference: Row | None
    effects: Sequence[AxisEffect]
    counts: Mapping[State, int]
    comparisons: int
    results: Sequence[CellResult]

    @property
    def title(self) -> str:
        """Of the study, else the name of its file."""
        return self.study.file.title or self.study.source.stem

    def varying(self) -> list[str]:
        """Costs that are not the same for all combinations."""
        return varying(self.rows)


def summarise(study: Study, results: Sequence[CellResult], score: str = "") -> Summary:
    """The table of a study, also of one that still runs.

    Args:
        study: checked.
        results: of its cells, missing ones included.
        score: ``DATASET/METRIC`` or ``loss``; empty: as the study says.

    Raises:
        ConfigError: no cell has such a score.
    """
    measures = measures_of(results)
    measure = _chosen(measures, score or study.file.score)
    groups: dict[Key, list[CellResult]] = {}
    for result in results:
        groups.setdefault(result.cell.key, []).append(result)
    controls = sorted({control for r in results for d, control, label in r.scores if control != "right"})
    others = [other for other in measures if other != measure]
    columns = {other.name: _column(groups, other) for other in measures}
    shown = {control: _column(groups, measure, control) for control in controls if measure.dataset}
    numbers = columns[measure.name].numbers
    unseen = {control: _unseen(numbers, column.numbers) for control, column in shown.items()}
    rows = [_row(study, key, found, measure, columns, shown, unseen) for key, found in groups.items()]
    rows = _compared(rows, numbers, study.reference, measure)
    sign = 1 if measure.better == "lower" else -1
    rows.sort(key=lambda row: math.inf if row.score is None else sign * row.score.value)
    reference = next((row for row in rows if row.key == study.reference), None)
    states = Counter(result.state for result in results)
    return Summary(
        study, measure, others, [c for c in ("wrong", "none", "blank") if c in controls], rows, reference,
        main_effects(study.axes, numbers), {state: states[state] for state in STATES if states[state]},
        sum(row.change is not None for row in rows), results,
    )  # fmt: skip


def measures_of(results: Sequence[CellResult]) -> list[Measure]:
    """All numbers that some cell has with the right images, and the losses, in the order of the first cell."""
    found: dict[str, Measure] = {}
    for result in results:
        for (dataset, control, label), metric in result.scores.items():
            if control == "right":
                measure = Measure(dataset, label, metric.unit, metric.better)
                found.setdefault(measure.name, measure)
    return [*found.values(), Measure("", LOSS, "number", "lower")]


def _chosen(measures: Sequence[Measure], name: str) -> Measure:
    for measure in measures:
        if not name or name == measure.name:
            return measure
    if len(measures) == 1:
        return measures[0]  # nothing is evaluated yet
    raise ConfigError(unknown("score", name, [measure.name for measure in measures]))


def numbers_of(results: Sequence[CellResult], measure: Measure, control: str = "right") -> Numbers:
    """A number of one combination by seed."""
    if measure.dataset:
        place = measure.dataset, control, measure.label
        found = Numbers.of({r.cell.seed: r.scores[place] for r in results if place in r.scores})
        return replace(found, unit=measure.unit, better=measure.better)
    losses = {r.cell.seed: final_loss(r) for r in results}
    known = {seed: loss for seed, loss in losses.items() if loss is not None}
    return Numbers(known, better="lower", unit="number")


def final_loss(result: CellResult) -> float | None:
    """The last validation loss of a trained cell, else the mean of the last tenth of its training losses."""
    if result.state not in ("trained", "done"):
        return None
    validation = [value for _, value in result.validation if math.isfinite(value)]
    training = [value for _, value in result.loss if math.isfinite(value)]
    if validation:
        return validation[-1]
    return float(np.mean(training[-max(1, len(training) // TAIL) :])) if training else None


@dataclass(frozen=True)
class _Column:
    """A number of all combinations, and their intervals."""

    numbers: Mapping[Key, Numbers]
    estimates: Mapping[Key, Estimate | None]


def _column(groups: Mapping[Key, Sequence[CellResult]], measure: Measure, control: str = "right") -> _Column:
    numbers = {key: numbers_of(found, measure, control) for key, found in groups.items()}
    pooled = pooled_means(list(numbers.values()))
    return _Column(numbers, {key: estimate(found, pooled) for key, found in numbers.items()})


def _row(
    study: Study,
    key: Key,
    results: Sequence[CellResult],
    measure: Measure,
    columns: Mapping[str, _Column],
    controls: Mapping[str, _Column],
    unseen: Mapping[str, set[Key]],
) -> Row:
    reference, levels = dict(study.reference), dict(key)
    changed = frozenset(axis for axis in {*levels, *reference} if levels.get(axis) != reference.get(axis))
    states = Counter(result.state for result in results)
    mine = columns[measure.name]
    asked = {control: column.estimates[key] for control, column in controls.items()}
    also = {name: column.estimates[key] for name, column in columns.items() if name != measure.name}
    return Row(
        key,
        study.named(key),
        levels,
        changed,
        {state: states[state] for state in STATES if states[state]},
        [(r.cell.seed, r.message) for r in results if r.state == "failed" or r.message],
        mine.estimates[key],
        mine.numbers[key].values,
        {control: found for control, found in asked.items() if found is not None},
        frozenset(control for control, keys in unseen.items() if key in keys),
        {name: found for name, found in also.items() if found is not None},
        cost=_mean_cost([r.cost for r in results if r.state in ("trained", "done")]),
    )


def _unseen(right: Mapping[Key, Numbers], other: Mapping[Key, Numbers]) -> set[Key]:
    """Combinations whose number with other images is not shown to be worse than with the right ones."""
    by_seed = {
        key: Numbers(
            {seed: value - other[key].values[seed] for seed, value in n.values.items() if seed in other[key].values}
        )
        for key, n in right.items()
    }
    pooled, result = pooled_means(list(by_seed.values())), set()
    for key, numbers in right.items():
        found = gain(numbers, other[key], pooled) if numbers.better else None
        if found is not None and found.bounds is not None:
            low, high = found.bounds
            result |= {key} if (high >= 0 if numbers.better == "lower" else low <= 0) else set()
    return result


def _mean_cost(costs: Sequence[Cost]) -> Cost | None:
    if not costs:
        return None
    count = len(costs)
    return Cost(
        parameters=costs[0].parameters,
        trained=costs[0].trained,
        flops=sum(c.flops for c in costs) / count,
        seconds=sum(c.seconds for c in costs) / count,
        samples=sum(c.samples for c in costs) // count,
        tokens=sum(c.tokens for c in costs) // count,
        memory=max(c.memory for c in costs),
    )


def varying(rows: Sequence[Row]) -> list[str]:
    """Costs that are not the same for all rows."""
    found = {name: [row.costs(name) for row in rows if row.costs(name)] for name in COSTS}
    return [name for name, values in found.items() if values and max(values) > (1 + SAME) * min(values)]


def _compared(rows: Sequence[Row], numbers: Mapping[Key, Numbers], reference: Key, measure: Measure) -> list[Row]:
    """Rows with their difference to the reference, and the Pareto fronts that they are on."""
    base, pooled = numbers.get(reference), pooled_differences(list(numbers.values()))
    others = [row.key for row in rows if base is not None and row.key != reference]
    found = {key: difference(numbers[key], base, pooled) for key in others if base is not None}
    known = {key: change for key, change in found.items() if change is not None}
    changes = dict(zip(known, adjusted(list(known.values())), strict=True))
    fronts: dict[Key, set[str]] = {row.key: set() for row in rows}
    for cost in varying(rows):
        points = [(row.key, row.costs(cost), row.score.value) for row in rows if row.score and row.costs(cost)]
        for k in pareto([(at, value) for _, at, value in points], measure.better != "lower"):
            fronts[points[k][0]].add(cost)
    return [replace(row, change=changes.get(row.key), fronts=frozenset(fronts[row.key])) for row in rows]
