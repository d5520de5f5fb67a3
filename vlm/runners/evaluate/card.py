"""``write_card``: the evaluation card, one HTML file and the same as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common import VERSION
from vlm.common.errors import DataError
from vlm.common.owned import is_page, is_table, write_own
from vlm.common.types import Image, Video
from vlm.config.api import Config
from vlm.pages.card import page
from vlm.pages.parts import AnswerCard
from vlm.runners.evaluate.card_facts import (
    commands,
    cost_of,
    environment,
    errors_of,
    groups_of,
    prompt_facts,
    warnings_of,
    weights_of,
)
from vlm.tasks.benchmarks.base import Prediction, Questions, Result, Score
from vlm.tasks.benchmarks.image_controls import CONTROLS
from vlm.tasks.benchmarks.standard.base import StandardBenchmark

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.runners.evaluate.run import Asked

ANSWERS_SHOWN = 6
"""Examples of right answers, and as many of wrong ones, per dataset."""
IDLE = ("top_p", "top_k", "temperature", "seed")  # generation options without effect on greedy answers


def write_card(
    folder: Path, name: str, cfg: Config, engine: Engine, asked: Mapping[str, Asked], command: Sequence[str] = ()
) -> Path:
    """Write ``<name>_card.html``, which is returned, and ``<name>_card.json``.

    Args:
        folder: where to.
        name: of the evaluation.
        cfg: its configuration.
        engine: the model that answered.
        asked: by name of the dataset: the benchmark, the questions and the results.
        command: the words that asked for the evaluation.
    """
    scoring = {"intervals": "95 %, bootstrap over questions", "vlm": VERSION}
    groups = {"model": model_facts(cfg), "settings": settings(engine), "scoring": scoring}
    weights, made = weights_of(cfg), commands(folder, name, asked, command)
    facts = {"weights": weights, "environment": environment(engine), "commands": made}
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    card: dict[str, Any] = {"name": name, "date": date, **groups, **facts, "datasets": {}}
    sections = []
    for dataset, entry in asked.items():
        stored, section = _section(dataset, entry, engine)
        card["datasets"][dataset] = stored
        sections.append(section)
    write_own(folder / f"{name}_card.json", json.dumps(card, indent=1, default=str) + "\n", is_table)
    shown = {"date": date, **groups, "weights": weights, "versions and machine": facts["environment"], "commands": made}
    return write_own(folder / f"{name}_card.html", page(name, shown, sections), is_page)


def _section(dataset: str, entry: Asked, engine: Engine) -> tuple[dict[str, Any], dict[str, Any]]:
    """One dataset as the JSON has it, and as the page shows it."""
    by_control, questions = entry.results, Questions(entry.dataset)
    main = by_control.get("right") or next(iter(by_control.values()))
    examples, prompt = examples_of(main), prompt_facts(questions, engine)
    plain = [{**dataclasses.asdict(p), **p.fields} for shown in examples.values() for p in shown]
    unused = ("fields", "media")
    plain = [{k: v for k, v in row.items() if k not in unused and v is not None} for row in plain]
    images = images_of(questions, {row["id"] for row in plain})
    cards = {
        heading: [AnswerCard(p.question, p.answer, p.reference, images.get(p.id, ()), p.id) for p in shown]
        for heading, shown in examples.items()
    }
    shared = {
        "asked": dataset_facts(entry),
        "protocol": protocol_facts(entry, main),
        "warnings": warnings_of(by_control),
        "errors": errors_of(by_control),
        "unread": main.scores.get("unread", 0),
        "cost": cost_of(by_control, engine),
    }
    stored = {k: v for k, v in prompt.items() if k != "runs"}
    scores = {control: result.scores for control, result in by_control.items()}
    head, cells, note = score_table(by_control)
    shown = {
        **shared,
        "name": dataset,
        "prompt": prompt,
        "head": head,
        "rows": cells,
        "note": note,
        "examples": cards,
        "unscored": main.note,
        "controls": {c: [r for r in found.rows() if not r.group] for c, found in by_control.items() if not found.note},
        "groups": groups_of(main),
    }
    rows = {c: [dataclasses.asdict(row) for row in found.rows()] for c, found in by_control.items() if not found.note}
    return {**shared, "prompt": stored, "scores": rows, "results": scores, "examples": plain}, shown


def model_facts(cfg: Config) -> dict[str, Any]:
    """Which composition: the names of its parts."""
    model = cfg.model
    if model is None:
        return {}
    parts = {"vision": model.vision, "fusion": model.fusion, "llm": model.llm, "template": model.template}
    names = {k: part.name for k, part in parts.items() if part is not None}
    chain = " -> ".join(part.name for part in model.bridge) or "none"
    return {"composition": f"{model.arch}/{model.model_type}", **names, "bridge": chain}


def settings(engine: Engine) -> dict[str, Any]:
    """How the model answers by its composition; runs with seeds sample, with everything else as here."""
    result = dataclasses.asdict(engine.default_generation())
    idle = () if result["do_sample"] else IDLE
    return {k: v for k, v in result.items() if v is not None and k not in idle}


def dataset_facts(entry: Asked) -> dict[str, Any]:
    """Which records, how many questions, and every option of the benchmark that is set."""
    first = next(iter(entry.results.values()))
    facts = {"benchmark": entry.benchmark.__name__} | dict(entry.facts)
    facts |= {k: first.scores[k] for k in ("protocol", "split") if first.scores.get(k)}
    facts |= {"questions": first.scores.get("count", len(first.predictions))}
    if length := _length(entry):
        facts["longest answer in tokens"] = length
    unset = ("batch_size", "max_new_tokens", "seeds", "protocol", "split")
    facts |= {k: v for k, v in vars(entry.options).items() if k not in unset and v not in (None, "", 0, [])}
    seeds = ", ".join(map(str, first.scores.get("seeds", ())))
    facts["answers"] = f"sampled, averaged over the seeds {seeds}" if seeds else "one run, as the settings say"
    return facts


def _length(entry: Asked) -> int | None:
    """The longest answer in tokens, by the options or the protocol; None: only the benchmark itself knows."""
    length: int | None = vars(entry.options).get("max_new_tokens")
    if length or not issubclass(entry.benchmark, StandardBenchmark):
        return length
    spec = entry.benchmark.spec()
    return spec.protocol(entry.options.protocol).max_new_tokens or spec.max_new_tokens


def protocol_facts(entry: Asked, result: Result) -> dict[str, str]:
    """Whose rule scored the answers: its name, what it does in a sentence, and where the benchmark comes from."""
    named = {"name": str(result.scores.get("protocol", "")), "data": str(result.scores.get("data", ""))}
    if not issubclass(entry.benchmark, StandardBenchmark):
        return {**named, "about": "", "benchmark": "", "measures": "", "source": ""}
    spec = entry.benchmark.spec()
    about = spec.protocol(entry.options.protocol).about
    return {**named, "about": about, "benchmark": spec.title, "measures": spec.about, "source": spec.source}


def examples_of(result: Result) -> dict[str, list[Prediction]]:
    """Right and wrong answers of the first run, spread evenly over the dataset; one group where nothing is right."""
    first = [p for p in result.predictions if p.seed == result.predictions[0].seed and not p.error]
    if any(p.right is None for p in first):
        return {"Answers": _spread(first)}
    scored = [p for p in first if p.reference]
    right, wrong = [p for p in scored if p.right], [p for p in scored if not p.right]
    return {"Right answers": _spread(right), "Wrong answers": _spread(wrong)}


def _spread(predictions: Sequence[Prediction]) -> list[Prediction]:
    return list(predictions[:: max(1, len(predictions) // ANSWERS_SHOWN)][:ANSWERS_SHOWN])


def images_of(questions: Questions, names: set[str]) -> dict[str, list[Any]]:
    """The images of the samples with these names; of a video three frames."""
    result: dict[str, list[Any]] = {}
    for k, sample in questions.usable():
        if (sample.id or str(k)) in names:
            media = [m for message in sample.messages for m in message.media]
            result[sample.id or str(k)] = [image for m in media for image in _images(m)]
    return result


def _images(medium: Image | Video) -> list[Any]:
    from vlm.processors.image.decode import decode
    from vlm.processors.video.read import open_clip

    try:
        if not isinstance(medium, Video):
            return [decode(medium.source)]
        clip = open_clip(medium.source, str(medium.source)[:80])
        frames = clip.read(sorted({0, clip.count // 2, clip.count - 1}))
        return [decode(frame, name="frame") for frame in frames]
    except DataError:  # it was readable when the question was asked
        return []


def score_table(by_control: Mapping[str, Result]) -> tuple[list[str], list[list[str]], str]:
    """Column titles, rows and a note: a row per score; columns for the questions, each image control, the baseline."""
    tables = [{s.label: s for s in result.rows()} for result in by_control.values()]
    scores = list(tables[0].values())
    head, columns = [""], [[s.label for s in scores]]
    if any(s.count is not None for s in scores):
        head, columns = [*head, "questions"], [*columns, ["" if s.count is None else str(s.count) for s in scores]]
    for control, found in zip(by_control, tables, strict=True):
        head.append(CONTROLS[control])
        columns.append([_with_bounds(found[s.label]) if s.label in found else "-" for s in scores])
    if any(s.baseline is not None for s in scores):
        head, columns = [*head, "most frequent answer"], [*columns, [s.text(s.baseline) for s in scores]]
    bounds = any(s.interval is not None for s in scores)
    note = "in brackets: 95 % bootstrap interval over questions" if bounds else ""
    return head, [list(row) for row in zip(*columns, strict=True)], note


def _with_bounds(score: Score) -> str:
    bounds = "" if score.interval is None else " ({} to {})".format(*map(score.text, score.interval))
    return score.text(score.value) + bounds
