"""``run_evaluation``: a benchmark on every evaluation dataset of a configuration, results written as JSON."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common import dist
from vlm.common.errors import ConfigError
from vlm.common.owned import is_page, is_records, is_table, refuse_foreign_file, write_own
from vlm.common.paths import make_folder
from vlm.common.registry import config_class, resolve, resolve_any
from vlm.config.api import Config, DatasetEntry
from vlm.config.schema import Report, names_of, read
from vlm.datasets.loading.sources import build_sources
from vlm.runners.evaluate.card import write_card
from vlm.tasks.answers import AnswerParts, model_key
from vlm.tasks.base import Task
from vlm.tasks.benchmarks.base import Benchmark, Prediction, Result, Score
from vlm.tasks.benchmarks.image_controls import Controlled, check_control

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

log = logging.getLogger(__name__)

DEFAULT = "question_answering"
"""The benchmark of a configuration whose ``run.task`` is a training task, such as a run folder's."""

Results = dict[str, dict[str, Result]]  # dataset -> image control -> result


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
    allow_random: bool = False,
    show: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Run the benchmark that ``run.task`` names on ``evaluation_datasets``.

    Args:
        cfg: a checked configuration with ``evaluation_datasets``.
        engine: the model; loaded from ``cfg`` when not given (``allow_random``: see ``Engine.load``).
        datasets: names of the datasets to use; all by default.
        images: image controls to run: ``right``, ``wrong``, ``none``, ``blank``.
        output: folder of the results; by default ``run.save_path``, else ``run.output_dir``.
        batch_size: questions that run together; by default the dataset's.
        seeds: one run of sampled answers per seed, scores averaged; without seeds one run as the model says.
        judge: what counts as right: ``exact``, ``open`` or ``module:function``; by default the benchmark's.
        show: called on the first process with the table of each result as soon as it is known.

    Returns:
        ``{dataset: {control: scores}}``, also written to ``<output>/<run.name or evaluation>.json``, and
        predictions to ``..._answers.jsonl``.

    Raises:
        UserError: no such dataset, benchmark or option, or a model, image or question that cannot be used.
    """
    names = _names(cfg, datasets)
    benchmark, flags = benchmark_of(cfg), {"batch_size": batch_size, "seeds": list(seeds), "judge": judge}
    options = {n: read_options(benchmark, cfg, cfg.evaluation_datasets[n], flags) for n in names}
    _check_controls(images)
    folder = _result_folder(output or cfg.run.save_path or cfg.run.output_dir, cfg.run.name or "evaluation")
    joined, engine = engine is None, engine or _load(cfg, allow_random)
    main = dist.is_main()  # known only while the processes are joined
    results: Results = {name: {} for name in names}
    parts = list[AnswerParts]()
    try:
        for name in names:
            dataset = build_sources({name: cfg.evaluation_datasets[name]}, engine.processor, "eval")[0].dataset
            for image in images:
                parts.append(_parts(folder / f"{cfg.run.name or 'evaluation'}_{name}_{image}", engine))
                questions = Controlled(dataset, image, parts[-1], cfg.run.max_bad_share)
                results[name][image] = _timed(benchmark, engine, questions, options[name])
                if main:
                    show(f"{name}, {image} image:{table(results[name][image])}")
    finally:
        if joined:
            dist.destroy()
    if main:
        _write(folder, cfg, engine, results, options[names[0]], parts)
    return {name: {image: dict(r.scores) for image, r in by_image.items()} for name, by_image in results.items()}


def _result_folder(path: str | Path, name: str) -> Path:
    """The folder of the results. Raises UserError before anything is asked: files that are not ours are in the way."""
    folder = make_folder(path)
    for ending, ours in (("", is_table), ("_card", is_table)):
        refuse_foreign_file(folder / f"{name}{ending}.json", ours)
    refuse_foreign_file(folder / f"{name}_card.html", is_page)
    refuse_foreign_file(folder / f"{name}_answers.jsonl", is_records("dataset"))
    return folder


def _load(cfg: Config, allow_random: bool) -> Engine:
    """The model of a configuration, on a device of its own for each process."""
    from vlm.inference.engine import Engine

    return Engine.load(cfg, device=str(dist.init(cfg.run.device)[1]), allow_random=allow_random)


def _parts(file: Path, engine: Engine) -> AnswerParts:
    """Where answers are kept until the results are written: those of an interrupted evaluation are not asked again."""
    return AnswerParts(file, model_key(engine.config), replace_strange=True)


def _timed(benchmark: Any, engine: Engine, questions: Controlled, options: Any) -> Result:
    started = time.monotonic()
    result = benchmark().run(engine, questions, options)
    return replace(result, scores={**result.scores, "seconds": time.monotonic() - started})


def _names(cfg: Config, datasets: Sequence[str]) -> list[str]:
    names = list(datasets) or list(cfg.evaluation_datasets)
    unknown = [n for n in names if n not in cfg.evaluation_datasets]
    if unknown or not names:
        raise ConfigError(
            f"evaluation_datasets has no {', '.join(unknown) or 'entry'} "
            f"(known: {', '.join(cfg.evaluation_datasets) or 'none'})"
        )
    return names


def benchmark_of(cfg: Config) -> Any:
    """The class of the benchmark that ``run.task`` names; for a training task that of ``question_answering``.

    Raises ConfigError: unknown name, or a class that is neither.
    """
    name = cfg.run.task
    chosen = resolve_any(("benchmark", "task"), name)
    if issubclass(chosen, Benchmark) and config_class(chosen) is not None:
        return chosen
    if not issubclass(chosen, Task):
        raise ConfigError(f"run.task={name} is not a benchmark: it needs a method run and a dataclass Config")
    log.info("run.task=%s is a training task; scoring with the benchmark %s", name, DEFAULT)
    return resolve("benchmark", DEFAULT)


def read_options(benchmark: Any, cfg: Config, entry: DatasetEntry, flags: dict[str, Any]) -> Any:
    """The benchmark's options for one dataset: ``flags`` override ``run.benchmark``, which overrides the entry.

    Raises ConfigError: an option that the benchmark does not have, or a value of another type.
    """
    shared = {"batch_size": entry.batch_size, "max_new_tokens": entry.max_new_tokens}
    values = {k: v for k, v in shared.items() if k in names_of(benchmark.Config)} | cfg.run.benchmark
    values |= {k: v for k, v in flags.items() if v not in (None, [])}
    report = Report(origins={})
    options = read(benchmark.Config, values, ("run", "benchmark"), report)
    report.raise_if_any(f"benchmark {benchmark.__name__}")
    return options


def _check_controls(images: Sequence[str]) -> None:
    if not images:
        raise ConfigError("no image control named", fix="e.g. --images right,none")
    for image in images:
        check_control(image)


def _write(
    folder: Path, cfg: Config, engine: Engine, results: Results, options: Any, parts: Sequence[AnswerParts]
) -> None:
    """The scores, the predictions, and a card if a result asks for one; then unfinished answers are not needed."""
    name = cfg.run.name or "evaluation"
    scores = {n: {image: r.scores for image, r in by_image.items()} for n, by_image in results.items()}
    file = folder / f"{name}.json"
    write_own(file, json.dumps(scores, indent=1) + "\n", is_table)
    rows = [row(n, i, p) for n, by_image in results.items() for i, r in by_image.items() for p in r.predictions]
    lines = "".join(json.dumps(line, default=str) + "\n" for line in rows)
    write_own(folder / f"{name}_answers.jsonl", lines, is_records("dataset"))
    log.info("results: %s", file)
    if any(r.card for by_image in results.values() for r in by_image.values()):
        log.info("card: %s", write_card(folder, name, cfg, engine, results, options))
    for part in parts:
        part.remove()


def row(dataset: str, image: str, prediction: Prediction) -> dict[str, Any]:
    """One line of the answer file."""
    names = ("seed", "id", "question", "answer", "reference", "right", "error")
    given = {name: value for name in names if (value := getattr(prediction, name)) is not None}
    return {"dataset": dataset, "image": image, **given, **prediction.fields}


def table(result: Result) -> str:
    """One line per row of a result: its value, the baseline, the number of questions, the confidence interval."""
    if result.note:
        return f" {result.note}"
    return "".join(f"\n  {s.label:<14} {s.text(s.value):>7}{_details(s)}" for s in result.rows())


def _details(score: Score) -> str:
    baseline = "" if score.baseline is None else f"   majority {score.text(score.baseline):>7}"
    count = "" if score.count is None else f"   {score.count:6d} questions"
    bounds = "" if score.interval is None else "   95 %: {} to {}".format(*map(score.text, score.interval))
    return baseline + count + bounds
