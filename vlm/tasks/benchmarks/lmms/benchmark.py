"""``benchmark: lmms``: a task file of lmms-eval, asked by our engine and scored by the task's own functions."""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vlm.common.bounds import Count, Natural, Seed
from vlm.common.errors import ConfigError, DataError, PromptError
from vlm.common.registry import register_benchmark
from vlm.common.types import Sample
from vlm.tasks.answers import Answer, distinct, key_of, share_out
from vlm.tasks.benchmarks.base import Prediction, Questions, Result, Score, ask, checked, not_empty, prompt_of, reason
from vlm.tasks.benchmarks.lmms.requests import generation_of, losses
from vlm.tasks.benchmarks.standard.base import files_of
from vlm.tasks.scoring.statistics import Metric, interval, per_item

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.tasks.benchmarks.lmms.task import Number, TaskFile

PACKAGE = "lmms_eval"
INSTALL = 'pip install "vlm-compose[lmms]"'


class Documents:
    """The documents of a task as a dataset; ``places`` are their numbers in the task."""

    def __init__(self, task: TaskFile, places: Sequence[int]) -> None:
        self.task, self.places = task, list(places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        place = self.places[index]
        return Sample(tuple(self.task.messages(place)), str(place))

    def record(self, index: int) -> dict[str, Any]:
        """The fields of a document, media left out."""
        return self.task.fields(self.places[index])


@register_benchmark("lmms")
class Lmms:
    """A task file of lmms-eval: its questions on this engine, its scores by its own functions."""

    @dataclass
    class Config:
        """Options of a task file; what it says itself is in the file."""

        protocol: Literal["", "official", "lmms"] = "lmms"  # a task has one rule, its own: all three are that
        limit: Natural = 0  # ask a sample of this many documents, drawn with ``seed``; 0: all
        seed: Seed = 0
        empty: Literal["error", "wrong"] = "error"  # lmms-eval scores an empty answer as any other: wrong
        batch_size: Count = 64
        max_new_tokens: Count | None = None  # null: the task's
        seeds: list[Seed] = field(default_factory=list)

    def open(self, annotations: str, media: str, options: Config) -> Documents:
        """The documents of a task file.

        Raises ConfigError: lmms-eval is not installed, or the file runs code and is not trusted; DataError: not a task.
        """
        if importlib.util.find_spec(PACKAGE) is None:
            raise ConfigError("benchmark lmms needs the package lmms-eval, which is not installed", fix=INSTALL)
        from vlm.tasks.benchmarks.lmms.task import TaskFile

        files = files_of(annotations, media, "")
        task = TaskFile.open(str(files.annotations), str(files.media or ""))
        places = range(len(task))
        if 0 < options.limit < len(task):
            return Documents(task, sorted(random.Random(options.seed).sample(places, options.limit)))
        return Documents(task, places)

    def run(self, engine: Engine, dataset: Questions, options: Config) -> Result:
        """Ask every document and score as the task does; see :class:`~vlm.tasks.benchmarks.base.Benchmark`."""
        documents: Documents = dataset.origin
        task = documents.task
        if task.is_choice:
            runs = [[[answer] for answer in _choices(engine, dataset, options.batch_size)]]
        else:
            runs = [self._written(engine, dataset, options, seed) for seed in options.seeds or (None,)]
        good = [k for k in range(len(dataset)) if not any(a.error for run in runs for a in run[k])]
        if not good:
            raise DataError(f"none of the {len(dataset)} documents can be scored; the first: {runs[0][0][0].error}")
        found = [task.score({documents.places[k]: _read(task, run[k]) for k in good}) for run in runs]
        metrics = [[m for n in numbers if (m := _metric(n)) is not None] for numbers in found]
        facts = {"benchmark": task.name, "protocol": "lmms", "split": task.split, "count": len(good)}
        scores = facts | {"errors": len(dataset) - len(good)} | numbers_of(found, metrics) | {"data": task.digest()}
        scores |= {"seeds": options.seeds} if options.seeds else {}
        predictions = [
            _prediction(documents, k, run[k], numbers, seed)
            for run, numbers, seed in zip(runs, found, options.seeds or (None,), strict=True)
            for k in range(len(dataset))
        ]
        return Result(scores, predictions, table_of(scores, metrics[0]), card=True, metrics=tuple(metrics[0]))

    @staticmethod
    def _written(engine: Engine, dataset: Questions, options: Config, seed: int | None) -> list[list[Answer]]:
        """Of each document the answers of the task's repeats."""
        task: TaskFile = dataset.origin.task
        wanted = dict(task.config.generation_kwargs or {})
        wanted |= {"max_new_tokens": options.max_new_tokens} if options.max_new_tokens else {}
        wanted |= {"do_sample": True, "temperature": wanted.get("temperature") or 1.0} if seed is not None else {}
        generation = generation_of({"seed": seed or 0} | wanted, engine)
        if seed is not None:
            generation = generation.replace(seed=seed)
        repeated = [
            generation.replace(seed=(generation.seed or 0) + k) if generation.do_sample else generation
            for k in range(task.repeats)
        ]
        runs = [ask(engine, dataset, one, options.batch_size) for one in dict.fromkeys(repeated)]
        runs = runs if generation.do_sample else runs * task.repeats
        return [[not_empty(answer, options.empty) for answer in own] for own in zip(*runs, strict=True)]


def _choices(engine: Engine, dataset: Questions, batch_size: int) -> list[Answer]:
    """Of each document the losses of its options as JSON; those of an interrupted run are not computed again."""
    documents: Documents = dataset.origin
    prompts = {k: prompt_of(sample) for k, sample in dataset.usable()}
    errors: dict[int, str] = {}
    options: dict[int, list[str]] = {}
    for k in prompts:
        try:
            options[k] = documents.task.choices(documents.places[k])
        except DataError as error:
            errors[k] = str(error)
    keys = dict(zip(options, distinct(key_of(prompts[k], own) for k, own in options.items()), strict=True))

    def groups(mine: list[int]) -> Generator[dict[int, Answer], None, None]:
        for first in range(0, len(mine), batch_size):
            batch = mine[first : first + batch_size]
            asked = losses(engine, [prompts[k] for k in batch], [options[k] for k in batch])
            yield {k: _stored(pairs) for k, pairs in zip(batch, asked, strict=True)}

    found = share_out(keys, groups, batch_size, dataset.parts)
    found |= {k: Answer("", errors.get(k) or reason(dataset, k)) for k in range(len(dataset)) if k not in found}
    return checked([found[k] for k in range(len(dataset))], dataset)


def _stored(pairs: Any) -> Answer:
    return Answer("", str(pairs)) if isinstance(pairs, DataError | PromptError) else Answer(json.dumps(pairs))


def _read(task: TaskFile, answers: Sequence[Answer]) -> Sequence[Any]:
    """What the task scores: texts, or of each option its loss and whether it is written."""
    return [tuple(pair) for pair in json.loads(answers[0])] if task.is_choice else [str(a) for a in answers]


def _metric(number: Number) -> Metric | None:
    """A mean as a metric with rows; another aggregation is a number alone."""
    if not number.is_mean:
        return None
    units, values = [str(place) for place in number.values], [float(v) for v in number.values.values()]
    share = all(0 <= v <= 1 for v in values)
    return per_item(number.label, units, values, unit="share" if share else "number")


def numbers_of(runs: Sequence[Sequence[Number]], metrics: Sequence[Sequence[Metric]]) -> dict[str, Any]:
    """Values of every metric (means over the runs), with intervals where the value is a mean over the documents."""
    values = {n.label: [found[k].value for found in runs] for k, n in enumerate(runs[0])}
    bounds = {m.label: interval([found[k] for found in metrics]) for k, m in enumerate(metrics[0])}
    means = {
        k: sum(v for v in own if v is not None) / len(own) if None not in own else None for k, own in values.items()
    }
    result = {"primary": next(iter(values), ""), "metrics": means, "intervals": bounds}
    return result | ({"runs": values} if len(runs) > 1 else {})


def table_of(scores: Mapping[str, Any], metrics: Sequence[Metric]) -> list[Score]:
    """A row per metric, then what could not be asked."""
    units = {m.label: m.unit for m in metrics}
    rows = [
        Score(label, value, scores["count"], scores["intervals"].get(label), unit=units.get(label, "number"))
        for label, value in scores["metrics"].items()
    ]
    return rows + ([Score("errors", scores["errors"], unit="number")] if scores["errors"] else [])


def _prediction(
    documents: Documents, index: int, answers: Sequence[Answer], numbers: Sequence[Number], seed: int | None
) -> Prediction:
    place, task = documents.places[index], documents.task
    if error := next((a.error for a in answers if a.error), ""):
        return Prediction(str(place), "", "", seed=seed, error=error)
    first = next((n.values[place] for n in numbers if place in n.values), None)
    share = float(first) if isinstance(first, int | float) else None
    fields: dict[str, Any] = {"score": share} if share is not None else {}
    fields |= {"repeats": [str(a) for a in answers[1:]]} if len(answers) > 1 else {}
    answer = str(answers[0])
    if task.is_choice:
        pairs, options = json.loads(answers[0]), task.choices(place)
        answer = options[min(range(len(pairs)), key=lambda k: pairs[k][0])]
        fields["losses"] = {option: round(pair[0], 6) for option, pair in zip(options, pairs, strict=True)}
    question = "".join(message.text for message in task.messages(place)[-1:])
    right = None if share is None else share >= 0.5
    return Prediction(str(place), question, answer, task.target(place), right, fields, seed)
