"""``run_evaluation``: a benchmark on every evaluation dataset of a configuration, results written as JSON."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vlm.common import dist
from vlm.common.errors import ConfigError, DataError, printable
from vlm.common.owned import is_page, is_records, is_table, refuse_foreign_file, replace_text, write_own, written
from vlm.common.paths import make_folder
from vlm.common.registry import config_class, resolve, resolve_any
from vlm.config.api import Config, DatasetEntry
from vlm.config.schema import Report, names_of, read
from vlm.datasets.formats.table.read import expanded
from vlm.datasets.loading.sources import build_sources
from vlm.runners.evaluate.card import write_card
from vlm.runners.evaluate.digests import digest_of
from vlm.tasks.answers import AnswerParts, model_key
from vlm.tasks.base import Task
from vlm.tasks.benchmarks.base import Benchmark, OwnFiles, Prediction, Result, Score
from vlm.tasks.benchmarks.image_controls import Controlled, check_control

if TYPE_CHECKING:
    from vlm.inference.engine import Engine

log = logging.getLogger(__name__)

SHARED = ("batch_size", "max_new_tokens")
"""Options that every entry has, whether its benchmark has them or not."""
OPTIONAL = ("limit", "seed", "metric")
"""Flags that are left out for benchmarks without such options; whoever asks draws the sample then."""
DEFAULT = "question_answering"
"""The benchmark of a configuration whose ``run.task`` is a training task, such as a run folder's."""


@dataclass
class Asked:
    """One entry of ``evaluation_datasets``: which benchmark asks what, and what it found.

    Attributes:
        benchmark: its class.
        options: its ``Config``.
        read: makes the dataset for a model.
        facts: about the data, for people.
        dataset: once it was read.
        results: by image control.
    """

    benchmark: Any
    options: Any
    read: Callable[[Engine], Any]
    facts: Mapping[str, Any]
    dataset: Any = None
    results: dict[str, Result] = field(default_factory=dict)

    def drawn(self, limit: int) -> int | None:
        """How many questions are drawn before the benchmark sees them, if it has no such option itself."""
        return limit if limit and "limit" not in names_of(self.benchmark.Config) else None

    def data(self) -> str:
        """A digest of the files of records; empty where these are not files of this machine."""
        try:
            return digest_of(expanded(self.facts.get("records") or []))
        except (DataError, OSError, TypeError, ValueError):
            return ""


def asked_of(cfg: Config, name: str, flags: Mapping[str, Any]) -> Asked:
    """An entry with its benchmark, whose original files are read at once.

    Raises ConfigError: no such benchmark or option, or it cannot read such an entry; DataError: files that are wrong.
    """
    files = cfg.evaluation_files.get(name)
    if files is None:
        entry, benchmark = cfg.evaluation_datasets[name], benchmark_of(cfg)
        facts = {"records": entry.format.raw.get("ann_path", ""), "media": entry.format.raw.get("image_path", "")}
        shared = {"batch_size": entry.batch_size, "max_new_tokens": entry.max_new_tokens}
        options = read_options(benchmark, shared, cfg.run.benchmark, flags)
        return Asked(benchmark, options, lambda engine: _source(name, entry, engine), facts)
    benchmark = resolve("benchmark", files.benchmark or name)
    if not issubclass(benchmark, OwnFiles):
        raise ConfigError(
            f"evaluation_datasets.{name}: the benchmark {files.benchmark or name} reads no eval_file_path",
            fix="write its questions as an entry with format: table (docs/guides/evaluate.md)",
        )
    size, length = files.batch_size or cfg.run.batch_size_eval, files.max_new_tokens
    options = read_options(benchmark, {"batch_size": size, "max_new_tokens": length} | files.options, {}, flags)
    facts = {"records": files.eval_file_path, "media": files.img_path, "benchmark": files.benchmark or name}
    opened = benchmark().open(files.eval_file_path, files.img_path, options)  # before the model, which takes longer
    return Asked(benchmark, options, lambda engine: opened, facts)


def _source(name: str, entry: DatasetEntry, engine: Engine) -> Any:
    return build_sources({name: entry}, engine.processor, "eval")[0].dataset


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
    limit: int = 0,
    allow_random: bool = False,
    command: Sequence[str] = (),
    show: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Run the benchmarks of ``evaluation_datasets``: that of ``run.task``, and those of entries with original files.

    Args:
        cfg: a checked configuration with ``evaluation_datasets``.
        engine: the model; loaded from ``cfg`` when not given (``allow_random``: see ``Engine.load``).
        datasets: names of the datasets to use; all by default.
        images: image controls to run: ``right``, ``wrong``, ``none``, ``blank``.
        output: folder of the results; by default ``run.save_path``, else ``run.output_dir``.
        batch_size: questions that run together; by default the dataset's.
        seeds: one run of sampled answers per seed, scores averaged; without seeds one run as the model says.
        judge: what counts as right: ``exact``, ``open`` or ``module:function``; by default the benchmark's.
        limit: questions of each dataset, the same ones in every call; 0: as the benchmark's options say.
        command: the words that asked for it, for the card.
        show: called on the first process with the table of each result as soon as it is known.

    Returns:
        ``{dataset: {control: scores}}``, also written to ``<output>/<run.name or evaluation>.json``, and
        predictions to ``..._answers.jsonl``.

    Raises:
        UserError: no such dataset, benchmark or option, or a model, image or question that cannot be used.
    """
    names = _names(cfg, datasets)
    flags = {"batch_size": batch_size, "seeds": list(seeds), "judge": judge, "metric": judge and "judge"}
    asked = {name: asked_of(cfg, name, flags | ({"limit": limit, "seed": 0} if limit else {})) for name in names}
    _check_controls(images)
    folder = _result_folder(output or cfg.run.save_path or cfg.run.output_dir, cfg.run.name or "evaluation")
    joined, engine = engine is None, engine or _load(cfg, allow_random)
    main = dist.is_main()  # known only while the processes are joined
    parts = list[AnswerParts]()
    try:
        for name, entry in asked.items():
            entry.dataset = entry.read(engine)
            for image in images:
                parts.append(_parts(folder / f"{cfg.run.name or 'evaluation'}_{name}_{image}", engine))
                questions = Controlled(entry.dataset, image, parts[-1], cfg.run.max_bad_share, entry.drawn(limit))
                entry.results[image] = _timed(entry, engine, questions)
                if main:
                    show(f"{name}, {image} image:{table(entry.results[image])}")
    finally:
        if joined:
            dist.destroy()
    if main:
        _write(folder, cfg, engine, asked, parts, command)
    return {name: {image: dict(r.scores) for image, r in entry.results.items()} for name, entry in asked.items()}


def _result_folder(path: str | Path, name: str) -> Path:
    """The folder of the results. Raises UserError before anything is asked: files that are not ours are in the way."""
    folder = make_folder(path)
    for ending, ours in (("", is_table), ("_card", is_table)):
        refuse_foreign_file(folder / f"{name}{ending}.json", ours)
    refuse_foreign_file(folder / f"{name}_card.html", is_page)
    for ending in ("answers", "values"):
        refuse_foreign_file(folder / f"{name}_{ending}.jsonl", is_records("dataset"))
    return folder


def _load(cfg: Config, allow_random: bool) -> Engine:
    """The model of a configuration, on a device of its own for each process."""
    from vlm.inference.engine import Engine

    return Engine.load(cfg, device=str(dist.init(cfg.run.device)[1]), allow_random=allow_random)


def _parts(file: Path, engine: Engine) -> AnswerParts:
    """Where answers are kept until the results are written: those of an interrupted evaluation are not asked again."""
    return AnswerParts(file, model_key(engine.config), replace_strange=True)


def _timed(entry: Asked, engine: Engine, questions: Controlled) -> Result:
    started, before = time.monotonic(), len(questions.parts.done) if questions.parts is not None else 0
    result = entry.benchmark().run(engine, questions, entry.options)
    data: dict[str, Any] = {} if "data" in result.scores else {"data": entry.data()}
    data |= {"resumed": before} if before else {}  # answers of an interrupted run, which took no time of this one
    return replace(result, scores={**result.scores, **data, "seconds": time.monotonic() - started})


def _names(cfg: Config, datasets: Sequence[str]) -> list[str]:
    known = [*cfg.evaluation_datasets, *cfg.evaluation_files]
    names = list(datasets) or known
    unknown = [n for n in names if n not in known]
    if unknown or not names:
        raise ConfigError(
            f"evaluation_datasets has no {', '.join(unknown) or 'entry'} (known: {', '.join(known) or 'none'})"
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


def read_options(
    benchmark: Any, entry: Mapping[str, Any], run: Mapping[str, Any], flags: Mapping[str, Any] = MappingProxyType({})
) -> Any:
    """The benchmark's options for one dataset: ``flags`` override ``run.benchmark``, which overrides the entry.

    Raises ConfigError: an option that the benchmark does not have, or a value of another type.
    """
    known = names_of(benchmark.Config)
    values = {k: v for k, v in entry.items() if v is not None and (k in known or k not in SHARED)} | dict(run)
    values |= {k: v for k, v in flags.items() if v not in (None, []) and (k in known or k not in OPTIONAL)}
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
    folder: Path,
    cfg: Config,
    engine: Engine,
    asked: Mapping[str, Asked],
    parts: Sequence[AnswerParts],
    command: Sequence[str],
) -> None:
    """The results, and a card if one of them asks for it; then unfinished answers are not needed."""
    name = cfg.run.name or "evaluation"
    file = write_results(folder, name, {n: entry.results for n, entry in asked.items()})
    log.info("results: %s", file)
    if cfg.model is not None and any(r.card for entry in asked.values() for r in entry.results.values()):
        log.info("card: %s", write_card(folder, name, cfg, engine, asked, command))
    for part in parts:
        part.remove()


def write_results(folder: Path, name: str, results: Mapping[str, Mapping[str, Result]]) -> Path:
    """Write scores (``<name>.json``, which is returned), answers, values for comparison, and files of the results.

    Args:
        folder: where to.
        name: of the evaluation.
        results: by dataset and image control.
    """
    flat = [(n, i, r) for n, by_image in results.items() for i, r in by_image.items()]
    scores = {n: {image: r.scores for image, r in by_image.items()} for n, by_image in results.items()}
    rows = [row(n, i, p) for n, i, r in flat for p in r.predictions]
    _write_lines(folder / f"{name}_answers.jsonl", rows)
    values = [{"dataset": n, "image": i, **about(r), **m.stored()} for n, i, r in flat for m in r.metrics]
    if values:
        _write_lines(folder / f"{name}_values.jsonl", values)
    for n, image, result in flat:
        for own, text in result.files.items() if image == "right" else ():
            with written(folder / f"{name}_{n}_{own}"):
                replace_text(folder / f"{name}_{n}_{own}", text)
    return write_own(folder / f"{name}.json", json.dumps(scores, indent=1) + "\n", is_table)


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_own(file, "".join(json.dumps(line, default=str) + "\n" for line in rows), is_records("dataset"))


def row(dataset: str, image: str, prediction: Prediction) -> dict[str, Any]:
    """One line of the answer file."""
    names = ("seed", "id", "question", "answer", "reference", "right", "error")
    given = {name: value for name in names if (value := getattr(prediction, name)) is not None}
    media = {"media": list(prediction.media)} if prediction.media else {}
    return {"dataset": dataset, "image": image, **given, **prediction.fields, **media}


def about(result: Result) -> dict[str, Any]:
    """What must be equal in runs that are compared, and by how many runs with seeds the numbers are a mean of."""
    known = {k: str(result.scores.get(k, "")) for k in ("benchmark", "protocol", "split", "data")}
    return known | {"runs": len(result.scores.get("seeds", ())) or 1}


def table(result: Result) -> str:
    """One line per row of a result: its value, the baseline, the number of questions, the confidence interval."""
    if result.note:
        return f" {result.note}"
    return "".join(f"\n  {printable(s.label):<14} {s.text(s.value):>7}{_details(s)}" for s in result.rows())


def _details(score: Score) -> str:
    baseline = "" if score.baseline is None else f"   majority {score.text(score.baseline):>7}"
    count = "" if score.count is None else f"   {score.count:6d} questions"
    bounds = "" if score.interval is None else "   95 %: {} to {}".format(*map(score.text, score.interval))
    return baseline + count + bounds
