"""Open-VQA: open questions about images and videos, in classes; answers judged by rules or by a judge of your own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vlm.common.bounds import Count
from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.base import Prediction, Questions, Result
from vlm.tasks.benchmarks.question_answering import QuestionAnswering
from vlm.tasks.scoring.statistics import Metric, per_item

if TYPE_CHECKING:
    from vlm.inference.engine import Engine


@register_benchmark("open_vqa")
class OpenVqa(QuestionAnswering):
    """Questions judged by what an answer says.

    The class of a question is the field ``type`` (corpora ``open_vqa_images`` and ``open_vqa_videos``).
    """

    @dataclass
    class Config(QuestionAnswering.Config):
        """As for exact answers, with room for a sentence."""

        max_new_tokens: Count = 64
        judge: str = "open"

    def run(self, engine: Engine, dataset: Questions, options: QuestionAnswering.Config) -> Result:
        """As for exact answers, with a value per question, so that runs can be compared."""
        result = super().run(engine, dataset, options)
        return replace(result, metrics=(accuracy(result.predictions),))


def accuracy(predictions: Sequence[Prediction]) -> Metric:
    """The share of right answers by class; of several runs the mean for each question. Without reference: left out."""
    rights, kinds = defaultdict[str, list[bool]](list), dict[str, str | None]()
    bad = {p.id for p in predictions if p.error}
    for p in predictions:
        if p.reference and p.id not in bad:
            rights[p.id].append(bool(p.right))
            kinds[p.id] = p.fields.get("type")
    values = [sum(found) / len(found) for found in rights.values()]
    return per_item("accuracy", list(rights), values, groups=list(kinds.values()))
