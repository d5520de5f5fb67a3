"""The report of a training run: curves, sample answers, data, what trained, configuration, provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm.pages.charts import WIDE, Series, chart, smooth
from vlm.pages.parts import AnswerCard, render

Record = Mapping[str, Any]
STATUS = {"finished": "finished", "early_stop": "stopped early", "stopped": "interrupted"}


@dataclass(frozen=True)
class RunReport:
    """What the page shows."""

    title: str
    place: str  # folder of the run
    status: str = "finished"
    tiles: Sequence[tuple[str, str]] = ()  # name, value
    steps: Sequence[Record] = ()  # lines of the log: training steps
    valid: Sequence[Record] = ()  # and validations
    samples: Sequence[AnswerCard] = ()
    data: str = ""  # text table
    trained: str = ""  # text table
    config: str = ""  # YAML
    provenance: Mapping[str, Any] = field(default_factory=dict)


def page(report: RunReport) -> str:
    """The page as HTML. Raises DataError: a sample's image cannot be read."""
    groups = {name: report.provenance.get(name) or {} for name in ("metrics", "versions", "hardware", "fingerprints")}
    return render(
        "report.html",
        title=report.title,
        script="charts.js",
        report=report,
        status=STATUS.get(report.status, report.status),
        charts=_charts(report.steps, report.valid),
        provenance={name: {k: _cell(v) for k, v in values.items()} for name, values in groups.items()},
    )


def _charts(steps: Sequence[Record], valid: Sequence[Record]) -> list[dict[str, Any]]:
    def points(key: str) -> list[tuple[float, float]]:
        return [(r["step"], r[key]) for r in steps if math.isfinite(r[key])]

    window = max(1, len(steps) // 40)
    held_out = [Series("valid", [(r["step"], r["loss"]) for r in valid], "second", marks=True)] if valid else []
    speed = [(r["step"], r["samples"] / max(r["seconds"], 1e-9)) for r in steps]
    curves = [
        ("Loss", "mean per supervised token", [*_with_raw("train", points("loss"), window), *held_out]),
        ("Learning rate", "", [Series("lr", points("lr"))]),
        ("Gradient norm", "before clipping", _with_raw("norm", points("grad_norm"), window)),
        ("Throughput", "samples per second", _with_raw("samples/s", speed, window)),
        ("Peak memory", "MiB", [Series("MiB", points("memory_mib"))]),
    ]
    options: list[dict[str, Any]] = [{"width": WIDE}, *[{"from_zero": True}] * 4]
    return [{"title": t, "note": n, "svg": chart(s, **o)} for (t, n, s), o in zip(curves, options) if steps]


def _with_raw(name: str, points: list[tuple[float, float]], window: int) -> list[Series]:
    line = Series(name, smooth(points, window))
    return [Series("each step", points, "faint"), line] if window > 1 else [line]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
