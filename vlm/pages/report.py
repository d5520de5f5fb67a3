"""The report of a training run: curves, sample answers, data, what trained, configuration, provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from vlm.pages.charts import WIDE, Series, chart, smooth
from vlm.pages.parts import NOTHING, AnswerCard, answer_cards, document, fact_cards

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
    """The page as HTML.

    Raises:
        DataError: a sample's image cannot be read.
    """
    tiles = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in report.tiles)
    yaml = f"<details><summary>resolved configuration (YAML)</summary>{_pre(report.config)}</details>"
    sections = [
        ("Curves", "curves", _curves(report.steps, report.valid)),
        ("Sample answers", "samples", answer_cards(report.samples)),
        ("Data", "data", _pre(report.data)),
        ("Trained parameters", "trained", _pre(report.trained)),
        ("Configuration", "config", yaml if report.config else NOTHING),
        ("Provenance", "provenance", _provenance(report.provenance)),
    ]
    body = (
        f'<header><h1>{escape(report.title)}</h1><p class="sub"><span class="pill {escape(report.status)}">'
        f"{escape(STATUS.get(report.status, report.status))}</span> {escape(report.place)}</p></header>"
        + (f'<div class="tiles">{tiles}</div>' if tiles else "")
        + "\n".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for title, name, content in sections)
    )
    return document(report.title, body, script="charts.js")


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else NOTHING


def _curves(steps: Sequence[Record], valid: Sequence[Record]) -> str:
    if not steps:
        return NOTHING

    def points(key: str) -> list[tuple[float, float]]:
        return [(r["step"], r[key]) for r in steps if math.isfinite(r[key])]

    window = max(1, len(steps) // 40)
    loss = _with_raw("train", points("loss"), window)
    legend = ""
    if valid:
        loss.append(Series("valid", [(r["step"], r["loss"]) for r in valid], "second", marks=True))
        legend = '<span class="legend"><i class="line"></i>train<i class="second"></i>valid</span>'
    speed = [(r["step"], r["samples"] / max(r["seconds"], 1e-9)) for r in steps]
    charts = [
        _chart("Loss", "mean per supervised token", chart(loss, width=WIDE), legend, wide=True),
        _chart("Learning rate", "", chart([Series("lr", points("lr"))], from_zero=True)),
        _chart(
            "Gradient norm", "before clipping", chart(_with_raw("norm", points("grad_norm"), window), from_zero=True)
        ),
        _chart("Throughput", "samples per second", chart(_with_raw("samples/s", speed, window), from_zero=True)),
        _chart("Peak memory", "MiB", chart([Series("MiB", points("memory_mib"))], from_zero=True)),
    ]
    return f'<div class="charts">{"".join(charts)}</div>'


def _with_raw(name: str, points: list[tuple[float, float]], window: int) -> list[Series]:
    line = Series(name, smooth(points, window))
    return [Series("each step", points, "faint"), line] if window > 1 else [line]


def _chart(title: str, note: str, svg: str, legend: str = "", wide: bool = False) -> str:
    note = f" <span>{note}</span>" if note else ""
    kind = "card wide" if wide else "card"
    return (
        f'<div class="{kind}">{legend}<h3>{title}{note}</h3><div class="chart">{svg}<div class="tip"></div></div></div>'
    )


def _provenance(provenance: Mapping[str, Any]) -> str:
    names = ("metrics", "versions", "hardware", "fingerprints")
    return fact_cards({n: {k: _cell(v) for k, v in (provenance.get(n) or {}).items()} for n in names})


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
