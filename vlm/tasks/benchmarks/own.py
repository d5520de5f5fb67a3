"""Metrics for records of your own: a score per answer, from its text and the references of its record."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm.common.errors import DataError
from vlm.tasks.answers import distinct
from vlm.tasks.benchmarks.base import NOTHING, Prediction, Questions, Result
from vlm.tasks.benchmarks.numbers import numbers_of, table_of
from vlm.tasks.metrics import exact_match
from vlm.tasks.scoring.boxes import iou
from vlm.tasks.scoring.captions import Compared
from vlm.tasks.scoring.ptb import tokenize
from vlm.tasks.scoring.statistics import Metric, averaged, per_item
from vlm.tasks.scoring.texts import anls, contains, relaxed
from vlm.tasks.scoring.vqa import accuracies

_FOUR = re.compile(r"(-?\d+(?:\.\d+)?)" + r"\D+?(-?\d+(?:\.\d+)?)" * 3)
"""Four numbers, however they are set apart."""


@dataclass(frozen=True)
class Told:
    """An answer with what it is compared with."""

    name: str
    answer: str
    references: tuple[str, ...]


Values = Sequence[float | None]
"""Per answer its score; None: nothing can be read from it, which counts 0."""


def references_of(record: Mapping[str, Any], shown: str) -> tuple[str, ...]:
    """The references of a record: its list ``answers`` or ``answer``, else ``shown``, the answer of its sample.

    Elements are texts, or objects with ``answer`` as VQA's files have them; four numbers are one box.
    """
    for name in ("answers", "answer"):
        found = record.get(name)
        if isinstance(found, list) and found:
            if len(found) == 4 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in found):
                return (str(found),)
            return tuple(str(v["answer"]) if isinstance(v, Mapping) and "answer" in v else str(v) for v in found)
    return (shown,) if shown else ()


def exact(told: Sequence[Told]) -> Values:
    """1 if the answer equals a reference, apart from white space around it."""
    return [float(any(exact_match(t.answer, r) for r in t.references)) for t in told]


def contained(told: Sequence[Told]) -> Values:
    """1 if the answer has a reference in it, as whole words and in any case."""
    return [float(any(contains(t.answer, r) for r in t.references)) for t in told]


def similar(told: Sequence[Told]) -> Values:
    """ANLS of DocVQA and ST-VQA: how much of the best reference is there, and 0 below one half."""
    return [anls(t.answer, t.references) for t in told]


def nearly(told: Sequence[Told]) -> Values:
    """ChartQA's relaxed accuracy: a number within 5 % of a reference, or its text in any case."""
    return [float(any(relaxed(t.answer, r) for r in t.references)) for t in told]


def vqa(told: Sequence[Told]) -> Values:
    """The VQA accuracy by the rule of its script; a single reference stands for ten people who agree."""
    people = [t.references if len(t.references) > 1 else t.references * 10 for t in told]
    return [float(v) for v in accuracies([t.answer for t in told], people)]


def cider(told: Sequence[Told]) -> Values:
    """CIDEr-D of each answer among all; how rare n-grams are follows from the references of all."""
    if not told:
        return []
    candidates = tokenize([t.answer for t in told])
    flat = iter(tokenize([r for t in told for r in t.references]))
    references = [[next(flat) for _ in t.references] for t in told]
    return [float(v) for v in Compared(candidates, references).cider()]


def box_iou(told: Sequence[Told]) -> Values:
    """Intersection over union of the first box in the answer and the reference's, in the same units.

    Raises DataError: a reference without four numbers.
    """
    result: list[float | None] = []
    for t in told:
        own, true = box_of(t.answer), [box_of(r) for r in t.references]
        if None in true:
            raise DataError(f"{t.name}: reference {t.references[0]!r:.60} is not a box", fix="write [x1, y1, x2, y2]")
        result.append(None if own is None else max(iou(own, box) for box in true if box))
    return result


def box_of(text: str) -> tuple[float, float, float, float] | None:
    """The first four numbers of a text as x1, y1, x2, y2; None: there are fewer."""
    found = _FOUR.search(text)
    if found is None:
        return None
    a, b, c, d = map(float, found.groups())
    return a, b, c, d


METRICS: Mapping[str, Callable[[Sequence[Told]], Values]] = {
    "exact": exact, "contains": contained, "vqa": vqa, "anls": similar, "relaxed": nearly, "cider": cider,
    "iou": box_iou,
}  # fmt: skip
"""Metrics by their name in ``run.benchmark``; ``judge`` asks a judge instead."""
NUMBERS = ("cider",)
"""Metrics that are not shares of 1."""
HALF = 0.5
"""From this score on an answer is shown among the right ones; a box must be above it."""


def scored(metric: str, run: Sequence[Prediction], dataset: Questions) -> list[Prediction]:
    """A run with a score for each answer that has a reference; an empty answer is an error."""
    run = [replace(p, error=NOTHING) if not (p.error or p.answer.strip()) else p for p in run]
    told = {
        k: Told(p.id, p.answer, references)
        for k, p in enumerate(run)
        if not p.error and (references := references_of(dataset.record(k), p.reference))
    }
    values = dict(zip(told, METRICS[metric](list(told.values())), strict=True))
    return [_with_score(p, metric, told[k], values[k]) if k in told else p for k, p in enumerate(run)]


def _with_score(prediction: Prediction, metric: str, told: Told, value: float | None) -> Prediction:
    share = None if metric in NUMBERS else (value or 0.0) > HALF if metric == "iou" else (value or 0.0) >= HALF
    fields = {**prediction.fields, "score": value or 0.0} | ({"unread": True} if value is None else {})
    return replace(prediction, right=share, fields=fields, reference=prediction.reference or told.references[0])


def graded(metric: str, runs: Sequence[Sequence[Prediction]], *, card: bool = False) -> Result:
    """The mean score of one run, or of several over the same questions, with intervals and by ``type``.

    Questions that could not be asked, or got an empty answer, in any run do not count.
    """
    bad = {p.id for run in runs for p in run if p.error}
    usable = [[p for p in run if p.id not in bad and "score" in p.fields] for run in runs]
    predictions = [p for run in runs for p in run]
    if not usable[0]:
        problem = next((p.error for p in predictions if p.error), "no question has a reference answer")
        return Result(
            {"metric": metric, "count": 0, "errors": len(bad)}, predictions, note=f"nothing is scored: {problem}"
        )
    metrics = [_metrics(metric, run) for run in usable]
    facts = {"metric": metric, "count": len(usable[0]), "errors": len(bad)}
    scores = facts | {"unread": sum("unread" in p.fields for p in usable[0])} | numbers_of(metrics)
    together = [averaged(found) for found in zip(*metrics, strict=True)]
    return Result(scores, predictions, table_of(metrics[0], scores), card=card, metrics=together)


def _metrics(metric: str, run: Sequence[Prediction]) -> list[Metric]:
    units, values = distinct(p.id for p in run), [p.fields["score"] for p in run]
    groups = [None if p.fields.get("type") is None else str(p.fields["type"]) for p in run]
    result = [per_item(metric, units, values, groups=groups, unit="number" if metric in NUMBERS else "share")]
    if metric == "iou":
        result.append(per_item("above 0.5", units, [float(v > HALF) for v in values], groups=groups))
    return result
