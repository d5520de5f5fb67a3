"""The HTML report of a run: one file with curves, sample answers, what trained, configuration and provenance."""

from __future__ import annotations

import base64
import html
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.checkpoint.provenance import read_provenance
from vlm.checkpoint.run_folder import RunDir
from vlm.datasets.loading import data_stats
from vlm.pages.charts import WIDE, Series, chart, number, smooth
from vlm.pages.style import SCRIPT, STYLE
from vlm.processors.image.decode import decode
from vlm.runners.train.trackers import Record, duration, read_log

IMAGE = 320
"""Longest side of a sample's image in the report, in pixels."""


@dataclass(frozen=True)
class ReportSample:
    """One answer of the model: what was asked, with which images, what was wanted (if known), what it said."""

    question: str
    answer: str
    reference: str = ""
    images: Sequence[Any] = ()
    name: str = ""


def write_report(
    run_dir: str | Path | RunDir,
    samples: Sequence[ReportSample] = (),
    *,
    title: str | None = None,
    status: str = "finished",
    table: str = "",
) -> Path:
    """Write ``report.html`` from a run folder's log, configuration and provenance.

    Args:
        run_dir: folder of the run.
        samples: answers to show.
        title: heading; the folder's name by default.
        status: how the run ended.
        table: text table of trained parameters.

    Returns:
        the file.

    Raises:
        DataError: a sample's image cannot be read.
    """
    run = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
    records = read_log(run.log_file)
    last = run.last()
    provenance = read_provenance(last)
    config = run.config_file.read_text(encoding="utf-8") if run.config_file.exists() else ""
    title = title or run.path.resolve().name
    body = "\n".join(
        [
            _head(title, status, run.path),
            _tiles(records),
            _section("Curves", "curves", _curves(records)),
            _section("Sample answers", "samples", _samples(samples)),
            _section("Data", "data", _data(records)),
            _section("Trained parameters", "trained", f"<pre>{html.escape(table)}</pre>" if table else _nothing()),
            _section("Configuration", "config", _folded("resolved configuration (YAML)", config)),
            _section("Provenance", "provenance", _provenance(provenance)),
        ]
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main><script>{SCRIPT}</script></body></html>\n"
    )
    run.report.write_text(page, encoding="utf-8")
    return run.report


def _section(title: str, name: str, content: str) -> str:
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>'


def _nothing() -> str:
    return '<p class="none">none</p>'


def _head(title: str, status: str, path: Path) -> str:
    words = {"finished": "finished", "early_stop": "stopped early", "stopped": "interrupted"}.get(status, status)
    return (
        f'<header><h1>{html.escape(title)}</h1><p class="sub"><span class="status {html.escape(status)}">{words}</span>'
        f"{html.escape(str(path))}</p></header>"
    )


def _tiles(records: Sequence[Record]) -> str:
    steps, valid = _split(records)
    if not steps:
        return ""
    tail = steps[-max(1, min(20, len(steps) // 10)) :]
    seconds = sum(r["seconds"] for r in steps)
    tiles = [
        ("steps", f"{steps[-1]['step']:,}"),
        ("training time", duration(seconds) if seconds >= 60 else f"{seconds:.1f} s"),
    ]
    tiles.append(("training loss at the end", f"{statistics.fmean(r['loss'] for r in tail):.4g}"))
    if valid:
        tiles.append(("lowest validation loss", f"{min(r['loss'] for r in valid):.4g}"))
    tiles += [
        ("samples seen", number(sum(r["samples"] for r in steps))),
        ("samples per second", number(statistics.median(r["samples"] / max(r["seconds"], 1e-9) for r in steps))),
        ("waiting for data", f"{sum(r['data_seconds'] for r in steps) / max(seconds, 1e-9):.0%}"),
        ("peak memory", f"{max(r['memory_mib'] for r in steps) / 1024:.2f} GiB"),
    ]
    items = "".join(f'<div class="tile"><b>{value}</b><span>{name}</span></div>' for name, value in tiles)
    return f'<div class="tiles">{items}</div>'


def _data(records: Sequence[Record]) -> str:
    """Samples and shares by dataset, as the log had them last."""
    told = [r for r in records if "padding" in r]
    return (
        f"<pre>{html.escape(data_stats.report_table(data_stats.from_metrics(told[-1])))}</pre>" if told else _nothing()
    )


def _split(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    return [r for r in records if r["kind"] == "train"], [r for r in records if r["kind"] == "valid"]


def _curves(records: Sequence[Record]) -> str:
    steps, valid = _split(records)
    if not steps:
        return _nothing()

    def points(key: str) -> list[tuple[float, float]]:
        return [(r["step"], r[key]) for r in steps if math.isfinite(r[key])]

    window = max(1, len(steps) // 40)
    loss = [Series("train", smooth(points("loss"), window))]
    if window > 1:
        loss.insert(0, Series("each step", points("loss"), "faint"))
    if valid:
        loss.append(Series("valid", [(r["step"], r["loss"]) for r in valid], "second", marks=True))
    speed = [(r["step"], r["samples"] / max(r["seconds"], 1e-9)) for r in steps]
    legend = ""
    if valid:
        legend = '<span class="legend"><i class="line"></i>train<i class="second"></i>valid</span>'
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


def image_uri(source: Any) -> str:
    """An image as a ``data:`` address: at most ``IMAGE`` pixels a side, small ones enlarged to be seen.

    Raises:
        DataError: the image cannot be read.
    """
    image = decode(source).copy()
    if max(image.size) < IMAGE // 2:
        factor = IMAGE // max(image.size)
        image = image.resize((image.width * factor, image.height * factor))
    image.thumbnail((IMAGE, IMAGE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _samples(samples: Sequence[ReportSample]) -> str:
    if not samples:
        return _nothing()
    cards = []
    for sample in samples:
        images = "".join(f'<img alt="{html.escape(sample.name)}" src="{image_uri(p)}">' for p in sample.images)
        rows = [
            ("asked", sample.question, ""),
            ("answer", sample.answer, "answer"),
            ("reference", sample.reference, ""),
        ]
        items = "".join(
            f'<dt>{name}</dt><dd class="{kind}">{html.escape(text.strip()) or "(empty)"}</dd>'
            for name, text, kind in rows
            if text.strip() or name == "answer"
        )
        cards.append(f'<div class="card sample">{images}<dl>{items}</dl></div>')
    return f'<div class="samples">{"".join(cards)}</div>'


def _folded(title: str, text: str) -> str:
    if not text:
        return _nothing()
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"


def _provenance(provenance: dict[str, Any]) -> str:
    if not provenance:
        return _nothing()
    cards = []
    for name in ("metrics", "versions", "hardware", "fingerprints"):
        rows = "".join(
            f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(_cell(v))}</td></tr>"
            for k, v in (provenance.get(name) or {}).items()
        )
        if rows:
            cards.append(f'<div class="card"><h3>{name}</h3><table>{rows}</table></div>')
    return f'<div class="columns">{"".join(cards)}</div>'


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
