"""The report of a training run: curves, sample answers, data, what trained, configuration, provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vlm.pages.charts import WIDE, Series, chart, smooth
from vlm.pages.parts import render

Record = Mapping[str, Any]
STYLES = ("line", "second", "third", "fourth")
"""Of the lines of a chart, in order; a dataset has at most as many image controls."""
STATUS = {"finished": "finished", "early_stop": "stopped early", "stopped": "interrupted"}


def page(
    title: str,
    status: str,
    steps: Sequence[Record],
    valid: Sequence[Record],
    scores: Sequence[Record],
    provenance: Mapping[str, Any],
    **shown: Any,
) -> str:
    """The page as HTML.

    Args:
        title: heading.
        status: how the run ended.
        steps, valid, scores: lines of the log: training steps, validations, and benchmarks.
        provenance: of the last checkpoint.
        shown: ``place`` (folder of the run), ``tiles`` (name, value), ``samples`` (:class:`AnswerCard`), and the texts
            ``data``, ``trained`` (tables) and ``config`` (YAML); ``spikes``: lines of the log, if any.

    Raises:
        DataError: a sample's image cannot be read.
    """
    groups = {name: provenance.get(name) or {} for name in ("metrics", "versions", "hardware", "fingerprints")}
    facts = {name: {k: _cell(v) for k, v in values.items()} for name, values in groups.items()}
    spikes = shown.pop("spikes", ())
    charts = _charts(steps, valid, spikes)
    shown |= {"state": status, "status": STATUS.get(status, status), "charts": charts, "valid": valid}
    shown["charts"] += _score_charts(scores)
    return render("report.html", title=title, script="charts.js", provenance=facts, **shown)


def _charts(steps: Sequence[Record], valid: Sequence[Record], spikes: Sequence[Record]) -> list[dict[str, Any]]:
    def points(key: str) -> list[tuple[float, float]]:
        return [(r["step"], r[key]) for r in steps if math.isfinite(r[key])]

    window = max(1, len(steps) // 40)
    held_out = [Series("valid", [(r["step"], r["loss"]) for r in valid], "second", marks=True)] if valid else []
    jumped = {r["step"] for r in spikes}
    jumps = [Series("spikes", [p for p in points("loss") if p[0] in jumped], "spike", marks=True)] if jumped else []
    speed = [(r["step"], r["samples"] / max(r["seconds"], 1e-9)) for r in steps]
    curves = [
        ("Loss", "mean per supervised token", [*_with_raw("train", points("loss"), window), *held_out, *jumps]),
        ("Learning rate", "", [Series("lr", points("lr"))]),
        ("Gradient norm", "before clipping", _with_raw("norm", points("grad_norm"), window)),
        ("Throughput", "samples per second", _with_raw("samples/s", speed, window)),
        ("Peak memory", "MiB", [Series("MiB", points("memory_mib"))]),
    ]
    options: list[dict[str, Any]] = [{"width": WIDE}, *[{"from_zero": True}] * 4]
    legend = [("line", "train"), *([("second", "valid")] if valid else []), *([("spike", "spikes")] if jumps else [])]
    legend = legend if len(legend) > 1 else []
    return [
        {"title": t, "note": n, "svg": chart(s, **o), "legend": legend if t == "Loss" else []}
        for (t, n, s), o in zip(curves, options)
        if steps
    ]


def _score_charts(scores: Sequence[Record]) -> list[dict[str, Any]]:
    """A chart per dataset and metric of the benchmarks asked while the run trained, a line per image control."""
    lines: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for record in scores:
        for key, value in record.items():
            dataset, *control, metric = key.split("/") if "/" in key else ("", "")
            if metric and math.isfinite(value):
                named = lines.setdefault((dataset, metric), {})
                named.setdefault("/".join(control) or "right image", []).append((record["step"], value))
    result = []
    for (dataset, metric), named in lines.items():
        styles = dict(zip(named, STYLES))
        series = [Series(name, named[name], style, marks=True) for name, style in styles.items()]
        legend = [(style, name) for name, style in styles.items()] if len(named) > 1 else []
        result.append({"title": f"{dataset}: {metric}", "note": "", "svg": chart(series), "legend": legend})
    return result


def _with_raw(name: str, points: list[tuple[float, float]], window: int) -> list[Series]:
    line = Series(name, smooth(points, window))
    return [Series("each step", points, "faint"), line] if window > 1 else [line]


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items() if not isinstance(v, dict))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
