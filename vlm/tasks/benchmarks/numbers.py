"""The numbers of a result from its metrics: values, intervals, groups, and the rows to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm.tasks.benchmarks.base import Score
from vlm.tasks.scoring.statistics import Metric, interval


def numbers_of(runs: Sequence[Sequence[Metric]]) -> dict[str, Any]:
    """Values, intervals and groups of every metric, means over the runs; the first metric is the primary one."""
    same = {m.label: [run[k] for run in runs] for k, m in enumerate(runs[0])}
    groups = {label: [m.by_group() for m in found] for label, found in same.items()}
    result: dict[str, Any] = {
        "primary": next(iter(same), ""),
        "metrics": {label: _mean([m.value() for m in found]) for label, found in same.items()},
        "intervals": {label: interval(found) for label, found in same.items()},
        "by_group": {
            label: {g: {"value": _mean([f[g][0] for f in found]), "count": count} for g, (_, count) in found[0].items()}
            for label, found in groups.items()
            if found[0]
        },
    }
    return result | ({"runs": {k: [m.value() for m in v] for k, v in same.items()}} if len(runs) > 1 else {})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def table_of(metrics: Sequence[Metric], scores: Mapping[str, Any]) -> list[Score]:
    """A row per metric, then a row per group of the first one, then what could not be scored."""
    rows = [
        Score(m.label, scores["metrics"][m.label], len(m.units), scores["intervals"][m.label], unit=m.unit)
        for m in metrics
    ]
    if metrics:
        groups = scores["by_group"].get(metrics[0].label, {})
        rows += [
            Score(g, found["value"], found["count"], unit=metrics[0].unit, group=True) for g, found in groups.items()
        ]
    rows += [Score(label, scores[label], unit="number") for label in ("unread", "errors") if scores[label]]
    return rows
