"""``run_evaluation``: every evaluation dataset of a configuration, scored and written as JSON."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common import dist
from vlm.common.config import Config
from vlm.common.errors import ConfigError
from vlm.common.registry import resolve
from vlm.datasets.loader import build_sources
from vlm.tasks.question_answering import Answered, QuestionAnswering

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

log = logging.getLogger(__name__)

TASK = "question_answering"


def run_evaluation(
    cfg: Config,
    *,
    engine: Engine | None = None,
    datasets: Sequence[str] = (),
    images: Sequence[str] = ("right",),
    output: str | Path | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Ask a model the questions of ``evaluation_datasets`` and count the right answers.

    Args:
        cfg: a checked configuration with ``evaluation_datasets``.
        engine: the model; loaded from ``cfg`` when not given.
        datasets: names of the datasets to use; all by default.
        images: controls to run, of ``right``, ``wrong``, ``none``.
        output: folder for the results; by default ``run.save_path``, else ``run.output_dir``.
        batch_size: questions that run together; by default the dataset's.

    Returns:
        ``{dataset: {control: numbers}}``, also written to ``<output>/<run.name or evaluation>.json``; the
        single answers lie next to it in ``..._answers.jsonl``.

    Raises:
        UserError: no such dataset, or a model, picture or question that cannot be used.
    """
    names = list(datasets) or list(cfg.evaluation_datasets)
    unknown = [n for n in names if n not in cfg.evaluation_datasets]
    if unknown or not names:
        raise ConfigError(
            f"evaluation_datasets has no {', '.join(unknown) or 'entry'} "
            f"(known: {', '.join(cfg.evaluation_datasets) or 'none'})"
        )
    joined = engine is None
    if engine is None:
        engine = _load_engine(cfg)
    try:
        results, answers = _evaluate(cfg, engine, names, images, batch_size)
    finally:
        if joined:
            dist.destroy()
    if dist.is_main():
        folder = Path(output or cfg.run.save_path or cfg.run.output_dir)
        _write(folder, cfg.run.name or "evaluation", results, answers)
    return results


def _load_engine(cfg: Config) -> Engine:
    from vlm.inference.engine import Engine

    _, device = dist.init(cfg.run.device)
    return Engine.load(cfg, device=str(device))


def _evaluate(
    cfg: Config, engine: Engine, names: Sequence[str], images: Sequence[str], batch_size: int | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    results: dict[str, Any] = {}
    answers: list[dict[str, Any]] = []
    for name in names:
        entry = cfg.evaluation_datasets[name]
        dataset = build_sources({name: entry}, engine.processor, "eval")[0].dataset
        results[name] = {}
        for image in images:
            task = _task(cfg, image, batch_size or entry.batch_size, entry.max_new_tokens)
            started = time.monotonic()
            answered = task.answer(engine, dataset)
            seconds = time.monotonic() - started
            results[name][image] = {**task.score(answered), "seconds": seconds}
            answers += [_row(name, image, a) for a in answered]
            log.info("%s, %s picture: %s", name, image, table(results[name][image]))
    return results, answers


def _task(cfg: Config, image: str, batch_size: int, max_new_tokens: int) -> QuestionAnswering:
    chosen = resolve("task", cfg.run.task)
    kind = chosen if issubclass(chosen, QuestionAnswering) else resolve("task", TASK)
    return kind(kind.Config(image=image, batch_size=batch_size, max_new_tokens=max_new_tokens))


def _row(name: str, image: str, answered: Answered) -> dict[str, Any]:
    row = dataclasses.asdict(answered)
    kept = {k: v for k, v in row.pop("record").items() if k in ("type", "objects", "unseen_pair")}
    return {"dataset": name, "image": image, **row, **kept}


def _write(folder: Path, name: str, results: dict[str, Any], answers: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = "".join(json.dumps(a, default=str) + "\n" for a in answers)
    (folder / f"{name}_answers.jsonl").write_text(lines, encoding="utf-8")
    log.info("results: %s", file)


def table(numbers: dict[str, Any]) -> str:
    """One line per question type: accuracy, the majority answer's accuracy, number of questions."""
    guess = numbers["majority"]
    rows = [("all", numbers["overall"], guess["overall"], numbers["count"])]
    counts = numbers["counts"]["by_type"]
    rows += [(k, v, guess["by_type"][k], counts[k]) for k, v in numbers["by_type"].items()]
    if numbers["unseen_pairs"] is not None:
        rows.append(("unseen pairs", numbers["unseen_pairs"], guess["unseen_pairs"], numbers["counts"]["unseen_pairs"]))
    return "\n" + "\n".join(f"  {k:<14} {v:7.1%}   majority {m:7.1%}   {n:6d} questions" for k, v, m, n in rows)
