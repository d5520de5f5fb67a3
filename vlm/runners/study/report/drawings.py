"""Curves and costs of the combinations, as drawings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vlm.pages.charts import smooth
from vlm.pages.study.page import Plot
from vlm.pages.study.plots import COLOURS, Curve, Point, curves, scatter
from vlm.runners.study.report.summary import COSTS
from vlm.runners.study.report.words import amount, half_text

if TYPE_CHECKING:
    from vlm.runners.study.report.effects import Key
    from vlm.runners.study.report.summary import Summary
    from vlm.runners.study.results import CellResult

POINTS = 100
"""Points of a curve."""
SMOOTHED = 40
"""A training loss is the mean over this part of its points."""

Points = Sequence[tuple[float, float]]


def curve_plots(summary: Summary, colours: Mapping[Key, int]) -> list[Plot]:
    """Training loss, and validation loss where there is one."""
    kinds: list[tuple[str, str, Callable[[CellResult], Points]]] = [
        ("Validation loss", "of the last stage", lambda result: result.validation),
        ("Training loss", "of the last stage, smoothed", lambda result: _smoothed(result.loss)),
    ]
    result = []
    for title, note, of in kinds:
        lines = [
            Curve(row.name, _together([of(r) for r in summary.results if r.cell.key == row.key]), colours[row.key])
            for row in sorted(summary.rows, key=lambda row: colours[row.key])
        ]
        lines = [line for line in lines if line.points]
        if lines:
            named = [(line.style, line.name) for line in lines if line.colour < COLOURS]
            result.append(Plot(title, note, curves(lines, title), named, len(lines) - len(named)))
    return result


def _smoothed(points: Points) -> Points:
    known = [(x, y) for x, y in points if math.isfinite(y)]
    return smooth(known, max(1, len(known) // SMOOTHED))


def _together(runs: Sequence[Points]) -> list[tuple[float, float, float, float]]:
    """(step, mean, lowest, highest) over the runs that have come so far."""
    runs = [[(x, y) for x, y in run if math.isfinite(y)] for run in runs]
    runs = [run for run in runs if run]
    if not runs:
        return []
    steps = sorted({x for run in runs for x, _ in run})
    if len(steps) > POINTS:
        steps = list(np.linspace(steps[0], steps[-1], POINTS))
    at = np.full((len(runs), len(steps)), np.nan)
    for k, run in enumerate(runs):
        xs, ys = zip(*run, strict=True)
        at[k] = np.interp(steps, xs, ys, left=np.nan, right=np.nan)
    known = ~np.isnan(at).all(axis=0)
    columns = zip(np.asarray(steps)[known], at[:, known].T, strict=True)
    return [(float(x), float(np.nanmean(v)), float(np.nanmin(v)), float(np.nanmax(v))) for x, v in columns]


def cost_plots(summary: Summary, colours: Mapping[Key, int]) -> list[Plot]:
    """The score over each cost that is not the same for all."""
    result, measure = [], summary.measure
    for name in summary.varying():
        points = []
        for row in summary.rows:
            if row.score is None or not row.costs(name):
                continue
            score = f"{measure.text(row.score.value)}{measure.sign} {half_text(measure, row.score)}".strip()
            points.append(
                Point(
                    row.name, row.costs(name), row.score.value, row.score.bounds,
                    f"{score} · {amount(row.costs(name))} {COSTS[name]}", colours[row.key], name in row.fronts,
                    row.key == summary.study.reference,
                )
            )  # fmt: skip
        if len(points) > 1:
            svg = scatter(points, COSTS[name], measure.name, measure.unit == "share")
            result.append(Plot(f"{measure.name} by {COSTS[name]}", "", svg))
    return result
