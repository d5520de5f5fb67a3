"""``run_evaluation``: every evaluation dataset of a configuration, scored and written as JSON."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common import dist
from vlm.common.errors import ConfigError
from vlm.common.registry import resolve
from vlm.config.api import Config
from vlm.datasets.loading.sources import build_sources
from vlm.runners.evaluate.card import write_card
from vlm.tasks.benchmarks.question_answering import Prediction, QuestionAnswering

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
    seeds: Sequence[int] = (),
    judge: str | None = None,
) -> dict[str, Any]:
    """Ask a model the questions of ``evaluation_datasets`` and count the right answers.

    Args:
        cfg: a checked configuration with ``evaluation_datasets``.
        engine: the model; loaded from ``cfg`` when not given.
        datasets: names of the datasets to use; all by default.
        images: controls to run, of ``right``, ``wrong``, ``none``, ``blank``.
        output: folder for the results; by default ``run.save_path``, else ``run.output_dir``.
        batch_size: questions that run together; by default the dataset's.
        seeds: one run with drawn answers per seed, whose accuracies are averaged; none: one run as the model answers.
        judge: what counts as right: ``exact``, ``open`` or ``module:function``; by default the task's.

    Returns:
        ``{dataset: {control: numbers}}``, also written to ``<output>/<run.name or evaluation>.json``; the
        single answers lie next to it in ``..._answers.jsonl``.

    Raises:
        UserError: no such dataset, or a model, image or question that cannot be used.
    """
    names = list(datasets) or list(cfg.evaluation_datasets)
    unknown = [n for n in names if n not in cfg.evaluation_datasets]
    if unknown or not names:
        raise ConfigError(
            f"evaluation_datasets has no {', '.join(unknown) or 'entry'} "
            f"(known: {', '.join(cfg.evaluation_datasets) or 'none'})"
        )
    for image in images:  # before the model is loaded, which may take minutes
        _kind(cfg).Config(image=image, judge=judge or "exact")  # type: ignore[arg-type]
    joined, main = engine is None, dist.is_main()
    if engine is None:
        engine = _load_engine(cfg)
        main = dist.is_main()  # known only while the processes are joined
    asked = EvalOptions(tuple(images), batch_size, tuple(seeds), judge)
    try:
        results, answers = _evaluate(cfg, engine, names, asked)
    finally:
        if joined:
            dist.destroy()
    if main:
        folder = Path(output or cfg.run.save_path or cfg.run.output_dir)
        name = cfg.run.name or "evaluation"
        _write(folder, name, results, answers)
        if _kind(cfg).card:
            used = judge or _kind(cfg).Config().judge
            log.info("card: %s", write_card(folder, name, cfg, engine, names, results, answers, used))
    return results


def _load_engine(cfg: Config) -> Engine:
    from vlm.inference.engine import Engine

    _, device = dist.init(cfg.run.device)
    return Engine.load(cfg, device=str(device))


@dataclass(frozen=True)
class EvalOptions:
    """How often and with which images questions are asked; see :func:`run_evaluation`."""

    images: tuple[Any, ...]
    batch_size: int | None
    seeds: tuple[int, ...]
    judge: str | None


def _evaluate(
    cfg: Config, engine: Engine, names: Sequence[str], asked: EvalOptions
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    results: dict[str, Any] = {}
    answers: list[dict[str, Any]] = []
    for name in names:
        entry = cfg.evaluation_datasets[name]
        dataset = build_sources({name: entry}, engine.processor, "eval")[0].dataset
        results[name] = {}
        for image in asked.images:
            judge = {} if asked.judge is None else {"judge": asked.judge}
            size = asked.batch_size or entry.batch_size
            task = _kind(cfg)(
                _kind(cfg).Config(image=image, batch_size=size, max_new_tokens=entry.max_new_tokens, **judge)
            )
            started = time.monotonic()
            runs = {seed: task.answer(engine, dataset, task.drawn(engine, seed)) for seed in asked.seeds or (None,)}
            seconds = time.monotonic() - started
            results[name][image] = {**task.score(*runs.values()), "seconds": seconds}
            if asked.seeds:
                results[name][image]["seeds"] = list(asked.seeds)
            answers += [_row(name, image, seed, a) for seed, answered in runs.items() for a in answered]
            log.info("%s, %s image: %s", name, image, table(results[name][image]))
    return results, answers


def _kind(cfg: Config) -> type[QuestionAnswering]:
    chosen = resolve("task", cfg.run.task)
    return chosen if issubclass(chosen, QuestionAnswering) else resolve("task", TASK)


def _row(name: str, image: str, seed: int | None, answered: Prediction) -> dict[str, Any]:
    row = dataclasses.asdict(answered)
    kept = {k: v for k, v in row.pop("record").items() if k in ("type", "objects", "unseen_pair")}
    run = {} if seed is None else {"seed": seed}
    return {"dataset": name, "image": image, **run, **row, **kept}


def _write(folder: Path, name: str, results: dict[str, Any], answers: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines = "".join(json.dumps(a, default=str) + "\n" for a in answers)
    (folder / f"{name}_answers.jsonl").write_text(lines, encoding="utf-8")
    log.info("results: %s", file)


def table(numbers: dict[str, Any]) -> str:
    """One line per question type: accuracy, the majority answer's, number of questions, 95 % interval of the first."""
    if not numbers["count"]:
        return " no question has a reference answer, nothing is scored"
    guess, bounds = numbers["majority"], numbers.get("intervals", {"overall": None, "by_type": {}})
    rows = [("all", numbers["overall"], bounds["overall"], guess["overall"], numbers["count"])]
    counts, by_type = numbers["counts"]["by_type"], bounds["by_type"]
    rows += [(k, v, by_type.get(k), guess["by_type"][k], counts[k]) for k, v in numbers["by_type"].items()]
    if numbers["unseen_pairs"] is not None:
        seen = numbers["counts"]["unseen_pairs"]
        rows.append(("unseen pairs", numbers["unseen_pairs"], None, guess["unseen_pairs"], seen))
    lines = [f"  {k:<14} {v:7.1%}   majority {m:7.1%}   {n:6d} questions{_range(b)}" for k, v, b, m, n in rows]
    return "\n" + "\n".join(lines)


def _range(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"   95 %: {bounds[0]:.1%} to {bounds[1]:.1%}"
