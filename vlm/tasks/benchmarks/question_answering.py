"""Questions with short answers: accuracy by exact match or another judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vlm.common.registry import register_benchmark
from vlm.tasks.answers import distinct, key_of
from vlm.tasks.benchmarks.base import EvalOptions, Prediction, Questions, Result, Score, ask, paths_of, prompt_of
from vlm.tasks.benchmarks.own import graded, scored
from vlm.tasks.judges import intervals, judge_of
from vlm.tasks.judging.ask import AnyJudge
from vlm.tasks.judging.base import Case, JudgeOptions, Verdict, agreement, label_of
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

        metric: Literal["judge", "exact", "contains", "vqa", "anls", "relaxed", "cider", "iou"] = "judge"
        judge: str | JudgeOptions = "exact"  # exact, open, package.module:function, or a language model

        def __post_init__(self) -> None:
            """Raises ConfigError for an unknown judge."""
            if isinstance(self.judge, str):
                judge_of(self.judge)

    def run(self, engine: Engine, dataset: Questions, options: Config) -> Result:
        """The accuracy of one run, or the mean over one run per seed.

        Raises DataError: the dataset is empty; PromptError: a question does not fit the model.
        """
        judge = AnyJudge(options.judge, engine)
        runs = [self.answer(engine, dataset, options, seed) for seed in options.seeds or (None,)]
        if options.metric != "judge":
            result = graded(options.metric, [scored(options.metric, run, dataset) for run in runs], card=True)
        else:
            runs = [judged(judge, run) for run in runs]
            result = result_of(*runs, card=self.card or isinstance(options.judge, JudgeOptions))
            result = with_facts(result, options.judge, judge, runs[0], dataset)
        more = {"protocol": protocol_of(options)} | ({"seeds": options.seeds} if options.seeds else {})
        return replace(result, scores={**result.scores, **more})

    def answer(self, engine: Engine, dataset: Questions, options: Config, seed: int | None = None) -> list[Prediction]:
        """The answers, not yet judged, in the dataset's order; those of a ``seed`` are sampled."""
        predictions = []
        texts = ask(engine, dataset, sampling_options(engine, options.max_new_tokens, seed), options.batch_size)
        for index, text in enumerate(texts):
            if text.error:
                predictions.append(Prediction(str(index), "", "", seed=seed, error=text.error))
                continue
            sample, record = dataset[index], dataset.record(index)
            prompt = prompt_of(sample)
            question, reference = prompt[-1].text, "".join(m.text for m in sample.messages[len(prompt) :])
            fields = {k: record[k] for k in GROUPINGS if k in record}
            name, media = sample.id or str(index), paths_of(m for turn in prompt for m in turn.media)
            predictions.append(Prediction(name, question, text, reference, None, fields, seed, media=media))
        return predictions


def protocol_of(options: QuestionAnswering.Config) -> str:
    """What scored the answers, in a few words; a language model is known by its name and a hash of all it was told."""
    if options.metric != "judge":
        return f"metric {options.metric}"
    if isinstance(options.judge, str):
        return f"judge {options.judge}"
    return f"judge {options.judge.model or options.judge.run} {key_of(options.judge.facts())[:8]}"


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
    types = [r.get("type") for r in records]
    units = distinct(p.id for p in scored[0])
    metrics = [per_item("accuracy", units, shares, groups=[None if t is None else str(t) for t in types])]
    return Result(scores, predictions, table(scores), note, card, metrics=metrics if units else ())


def judged(judge: AnyJudge, run: Sequence[Prediction]) -> list[Prediction]:
    """A run with the judge's verdicts; an answer on which it gave none is an error, not a wrong answer."""
    asked = {k: Case(p.question, p.answer, p.reference) for k, p in enumerate(run) if not p.error and p.reference}
    verdicts = dict(zip(asked, judge.verdicts(list(asked.values())), strict=True))
    return [_with_verdict(p, verdicts[k]) if k in verdicts else p for k, p in enumerate(run)]


def _with_verdict(prediction: Prediction, verdict: Verdict) -> Prediction:
    fields = {**prediction.fields, "verdict": verdict.text} if verdict.text else prediction.fields
    return replace(prediction, right=verdict.right, fields=fields, error=verdict.error or None)


def with_facts(
    result: Result, named: str | JudgeOptions, judge: AnyJudge, run: Sequence[Prediction], dataset: Questions
) -> Result:
    """The result with what the judge is, its failures, and how far it agrees with the labels of records, if any.

    A record's ``label`` (right or wrong, by a person) is of its field ``labelled_answer``, else of the model's answer.
    """
    more: dict[str, Any] = {}
    if isinstance(named, JudgeOptions):
        unread = sum(bool(p.error and p.question) for p in run)
        more["judge"] = named.facts() | {"retries": judge.retries, "unreadable": unread}
    records = [(p, dataset.record(k)) for k, p in enumerate(run) if p.question and p.reference]
    labels = [(p, r, label_of(r["label"], p.id)) for p, r in records if r.get("label") is not None]
    if labels:
        own = [Case(p.question, str(r["labelled_answer"]), p.reference) for p, r, _ in labels if _has_answer(r)]
        others = iter(judge.verdicts(own))
        verdicts = [next(others).right if _has_answer(r) else p.right for p, r, _ in labels]
        more["agreement"] = agreement(verdicts, [label for _, _, label in labels])
    rows = [*result.rows(), *_agreement_rows(more.get("agreement"))] if more else result.table
    return replace(result, scores={**result.scores, **more}, table=rows)


def _has_answer(record: Mapping[str, Any]) -> bool:
    return record.get("labelled_answer") is not None


def _agreement_rows(found: Mapping[str, Any] | None) -> list[Score]:
    if found is None:
        return []
    kappa = [Score("kappa", found["kappa"], unit="number")] if found["kappa"] is not None else []
    return [Score("judge as people", found["accuracy"], found["count"]), *kappa]


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
