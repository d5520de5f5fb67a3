"""Questions with short answers: accuracy by exact match or another judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlm.common.registry import register_benchmark
from vlm.tasks.answers import distinct
from vlm.tasks.benchmarks.base import EvalOptions, Prediction, Questions, Result, Score, ask, paths_of, prompt_of
from vlm.tasks.judges import intervals, judge_of
from vlm.tasks.metrics import majority, mean_of, summarise
from vlm.tasks.scoring.statistics import per_item

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

GROUPINGS = ("type", "objects", "unseen_pair")
"""Fields of a record by which accuracies are reported; see :func:`vlm.tasks.metrics.summarise`."""


@register_benchmark("question_answering")
class QuestionAnswering:
    """Asks every question, greedily or as ``model.generation`` says, and counts the right answers."""

    card = True

    @dataclass
    class Config(EvalOptions):
        """What counts as a right answer."""

        judge: str = "exact"  # exact, open, or package.module:function

        def __post_init__(self) -> None:
            """Raises ConfigError for an unknown judge."""
            judge_of(self.judge)

    def run(self, engine: Engine, dataset: Questions, options: Config) -> Result:
        """The accuracy of one run, or the mean over one run per seed.

        Raises DataError: the dataset is empty; PromptError: a question does not fit the model.
        """
        runs = [self.answer(engine, dataset, options, seed) for seed in options.seeds or (None,)]
        result = result_of(*runs, card=self.card)
        more = {"protocol": f"judge {options.judge}"} | ({"seeds": options.seeds} if options.seeds else {})
        return replace(result, scores={**result.scores, **more})

    def answer(self, engine: Engine, dataset: Questions, options: Config, seed: int | None = None) -> list[Prediction]:
        """The judged answers, in the dataset's order; those of a ``seed`` are sampled."""
        judge, predictions = judge_of(options.judge), []
        texts = ask(engine, dataset, sampling_options(engine, options.max_new_tokens, seed), options.batch_size)
        for index, text in enumerate(texts):
            if text.error:
                predictions.append(Prediction(str(index), "", "", seed=seed, error=text.error))
                continue
            sample, record = dataset[index], dataset.record(index)
            prompt = prompt_of(sample)
            question, reference = prompt[-1].text, "".join(m.text for m in sample.messages[len(prompt) :])
            fields = {k: record[k] for k in GROUPINGS if k in record}
            right, media = judge(question, text, reference), paths_of(m for turn in prompt for m in turn.media)
            name = sample.id or str(index)
            predictions.append(Prediction(name, question, text, reference, right, fields, seed, media=media))
        return predictions


def sampling_options(engine: Engine, length: int | None, seed: int | None) -> Generation:
    """How answers of at most ``length`` tokens are generated.

    They are sampled with ``seed``; without one greedily, unless ``model.generation`` differs.
    """
    from vlm.inference.generation import Generation

    if seed is not None:
        chosen = engine.default_generation().replace(do_sample=True, seed=seed)
    else:
        chosen = engine.default_generation(Generation(do_sample=False, repetition_penalty=1.0, seed=0))
    return chosen.replace(max_new_tokens=length)


def result_of(*runs: Sequence[Prediction], card: bool = False) -> Result:
    """Scores of one run, or of several over the same questions.

    Scores are those of :func:`vlm.tasks.metrics.summarise` with ``majority`` for comparison and bootstrap
    ``intervals``; of several runs accuracies are means and ``runs`` lists them one by one. Questions that could not be
    asked (in any run) do not count; ``unusable`` is their number.
    """
    predictions = [p for run in runs for p in run]
    bad = {p.id for p in predictions if p.error}
    runs = tuple([p for p in run if p.id not in bad] for run in runs)
    scored = [[p for p in run if p.reference] for run in runs]  # some published sets have no answers
    records = [{**p.fields, "answer": p.reference} for p in scored[0]]
    numbers = [summarise(records, [bool(p.right) for p in run]) for run in scored]
    shares = [sum(flags) / len(runs) for flags in zip(*([bool(p.right) for p in run] for run in scored), strict=True)]
    scores = {**numbers[0], "majority": majority(records)}
    scores |= {"unusable": len(bad)} if bad else {}
    scores["intervals"] = intervals([r.get("type") for r in records], shares)
    if len(runs) > 1:
        scores |= mean_of(numbers) | {"runs": [n["overall"] for n in numbers]}
    note = "" if scores["count"] else "no question has a reference answer, nothing is scored"
    names = list(distinct(p.id for p in scored[0]))
    kinds = [None if (kind := r.get("type")) is None else str(kind) for r in records]
    metrics = [per_item("accuracy", names, shares, groups=kinds)] if names else []
    return Result(scores, predictions, table(scores), note, card, metrics=metrics)


def table(scores: dict[str, Any]) -> list[Score]:
    """Rows for all questions, for each type, and for unseen pairs if there are any."""
    counts, baseline, bounds = scores["counts"], scores["majority"], scores["intervals"]
    rows = [Score("all", scores["overall"], scores["count"], bounds["overall"], baseline["overall"])]
    for kind, value in scores["by_type"].items():
        interval = bounds["by_type"].get(kind)
        rows.append(Score(kind, value, counts["by_type"][kind], interval, baseline["by_type"][kind], group=True))
    if scores["unseen_pairs"] is not None:
        pairs = scores["unseen_pairs"], counts["unseen_pairs"]
        rows.append(Score("unseen pairs", *pairs, baseline=baseline["unseen_pairs"], group=True))
    if scores.get("unusable"):
        rows.append(Score("could not be asked", scores["unusable"], unit="number"))
    return rows
