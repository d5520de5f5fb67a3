"""The card of an evaluation: what was asked of which model, how, with what result; one HTML file, and JSON."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError
from vlm.common.types import Video
from vlm.common.version import VERSION
from vlm.config.api import Config, DatasetEntry
from vlm.datasets.loading.sources import build_sources
from vlm.pages.style import STYLE
from vlm.runners.train.report import image_uri
from vlm.tasks.benchmarks.question_answering import asked

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

ANSWERS_SHOWN = 6
"""Examples of right answers, and as many of wrong ones, per dataset."""

CONTROLS = {
    "right": "own image or clip",
    "wrong": "that of another question",
    "none": "no image",
    "blank": "grey image",
}
Row = Mapping[str, Any]


def write_card(
    folder: Path,
    name: str,
    cfg: Config,
    engine: Engine,
    datasets: Sequence[str],
    results: Mapping[str, Any],
    answers: Sequence[Row],
    judge: str = "exact",
) -> Path:
    """Write ``<name>_card.html`` and ``<name>_card.json``.

    Args:
        folder: where to.
        name: of the evaluation.
        cfg: its configuration.
        engine: the model that answered.
        datasets: names of the datasets, in order.
        results: numbers by dataset and control, as ``run_evaluation`` returns them.
        answers: the single answers.
        judge: what counted as right.

    Returns:
        the HTML file.
    """
    scoring = {"task": cfg.run.task, "judge": judge, "intervals": "95 %, bootstrap over questions", "vlm": VERSION}
    facts = {"model": model_facts(cfg), "settings": settings(engine), "scoring": scoring}
    card: dict[str, Any] = {"name": name, **facts, "datasets": {}}
    sections = []
    for dataset in datasets:
        entry = cfg.evaluation_datasets[dataset]
        rows = [a for a in answers if a["dataset"] == dataset]
        shown = examples(rows)
        declared = dataset_facts(entry, results[dataset]) | {"a whole prompt": _prompt(entry, engine)}
        plain = [{k: v for k, v in row.items() if k not in ("dataset", "image")} for row in shown]
        card["datasets"][dataset] = {"asked": declared, "results": results[dataset], "examples": plain}
        images = thumbnails(entry, engine, shown)
        sections.append(
            f"<section><h2>{html.escape(dataset)}</h2>{_facts(declared)}<h3>Accuracy</h3>{_table(results[dataset])}"
            f"<h3>Right answers</h3>{_examples([r for r in shown if r['right']], images)}"
            f"<h3>Wrong answers</h3>{_examples([r for r in shown if not r['right']], images)}</section>"
        )
    (folder / f"{name}_card.json").write_text(json.dumps(card, indent=1, default=str) + "\n", encoding="utf-8")
    head = "".join(f'<div class="card"><h3>{k}</h3>{_facts(v)}</div>' for k, v in facts.items())
    title = f"Evaluation {html.escape(name)}"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body><main><header><h1>{title}</h1></header>"
        f'<div class="columns">{head}</div>\n{"".join(sections)}</main></body></html>\n'
    )
    file = folder / f"{name}_card.html"
    file.write_text(page, encoding="utf-8")
    return file


def model_facts(cfg: Config) -> dict[str, Any]:
    """Which composition with which files."""
    model = cfg.model
    if model is None:
        return {}
    files = {f"weights {w.format}": w.path for w in model.weights if w.path}
    parts = {"vision": model.vision, "fusion": model.fusion, "llm": model.llm, "template": model.template}
    names = {k: part.name for k, part in parts.items() if part is not None}
    chain = " -> ".join(part.name for part in model.bridge) or "none"
    return {"composition": f"{model.arch}/{model.model_type}", **names, "bridge": chain, **files}


def settings(engine: Engine) -> dict[str, Any]:
    """How the model answers by its composition; a run with seeds draws, all else is as it says."""
    result = dataclasses.asdict(engine.default_generation())
    idle = () if result["do_sample"] else ("top_p", "top_k", "temperature", "seed")
    return {k: v for k, v in result.items() if v is not None and k not in idle}


def dataset_facts(entry: DatasetEntry, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Which records, and how many questions."""
    config = entry.format.config
    first = next(iter(numbers.values()))
    facts = {"records": getattr(config, "ann_path", ""), "media": getattr(config, "image_path", "")}
    facts |= {"questions": first["count"], "longest answer in tokens": entry.max_new_tokens}
    seeds = ", ".join(map(str, first.get("seeds", ())))
    facts["answers"] = f"drawn, averaged over the seeds {seeds}" if seeds else "one run, as the settings say"
    return facts


def _prompt(entry: DatasetEntry, engine: Engine) -> str:
    """The first question with everything that the template puts around it."""
    sample = build_sources({entry.name: entry}, engine.processor, "eval")[0].dataset[0]
    segments = engine.processor.template.chat_segments(asked(sample))
    return "".join(segment.text or "[image or video]" for segment in segments)


def examples(rows: Sequence[Row]) -> list[Row]:
    """Right and wrong answers to the own images of the first run, spread evenly over the file."""
    own = [r for r in rows if r["image"] == "right"] or list(rows)
    first = [r for r in own if r.get("seed") == own[0].get("seed")] if own else []
    result: list[Row] = []
    for right in (True, False):
        fitting = [r for r in first if r["right"] is right and r["reference"]]
        step = max(1, len(fitting) // ANSWERS_SHOWN)
        result += fitting[::step][:ANSWERS_SHOWN]
    return result


def thumbnails(entry: DatasetEntry, engine: Engine, rows: Sequence[Row]) -> dict[str, list[str]]:
    """``data:`` addresses of the media of the shown questions, by their names; of a video three frames."""
    expected = {row["id"] for row in rows}
    dataset = build_sources({entry.name: entry}, engine.processor, "eval")[0].dataset
    result: dict[str, list[str]] = {}
    for k in range(len(dataset)):
        sample = dataset[k]
        if (sample.id or str(k)) in expected:
            media = [m for message in sample.messages for m in message.media]
            result[sample.id or str(k)] = [u for m in media for u in _uris(m)]
    return result


def _uris(medium: Any) -> list[str]:
    from vlm.processors.video.read import open_clip

    try:
        if not isinstance(medium, Video):
            return [image_uri(medium.source)]
        clip = open_clip(medium.source, str(medium.source)[:80])
        frames = clip.read(sorted({0, clip.count // 2, clip.count - 1}))
        return [image_uri(_whole(frame)) for frame in frames]
    except DataError:  # it was readable when the question was asked
        return []


def _whole(frame: Any) -> Any:
    from vlm.processors.image.decode import decode

    return decode(frame, name="frame")


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items() if v != ""
    )
    return f"<table>{rows}</table>" if rows else '<p class="none">none</p>'


def _table(by_control: Mapping[str, Any]) -> str:
    """A line per class: number of questions, accuracy with its interval for each control, the majority answer's."""
    first = next(iter(by_control.values()))
    head = "".join(f"<th>{CONTROLS.get(c, c)}</th>" for c in by_control)
    lines = [f"<tr><th>class</th><th>questions</th>{head}<th>most frequent answer</th></tr>"]
    counts = first["counts"]["by_type"]
    for kind in (*first["by_type"], None):
        cells = []
        for numbers in by_control.values():
            share = numbers["overall"] if kind is None else numbers["by_type"][kind]
            bounds = numbers["intervals"]["overall"] if kind is None else numbers["intervals"]["by_type"][kind]
            cells.append(f"<td>{_percent(share, bounds)}</td>")
        guess = first["majority"]["overall"] if kind is None else first["majority"]["by_type"][kind]
        count = first["count"] if kind is None else counts[kind]
        label = "<b>all</b>" if kind is None else html.escape(kind)
        lines.append(f"<tr><td>{label}</td><td>{count}</td>{''.join(cells)}<td>{_percent(guess, None)}</td></tr>")
    return f"<table>{''.join(lines)}</table><p class='sub'>in brackets: 95 % bootstrap interval over questions</p>"


def _percent(share: float | None, bounds: Sequence[float] | None) -> str:
    if share is None:
        return "-"
    return f"{share:.1%}" + (f" ({bounds[0]:.1%} to {bounds[1]:.1%})" if bounds else "")


def _examples(rows: Sequence[Row], sources: Mapping[str, Sequence[str]]) -> str:
    if not rows:
        return '<p class="none">none</p>'
    cards = []
    for row in rows:
        images = "".join(f'<img alt="{html.escape(str(row["id"]))}" src="{u}">' for u in sources.get(row["id"], ()))
        lines = [("asked", row["question"]), ("answer", row["answer"]), ("reference", row["reference"])]
        items = "".join(f"<dt>{k}</dt><dd>{html.escape(text.strip()) or '(empty)'}</dd>" for k, text in lines)
        cards.append(f'<div class="card sample">{images}<dl>{items}</dl></div>')
    return f'<div class="samples">{"".join(cards)}</div>'
