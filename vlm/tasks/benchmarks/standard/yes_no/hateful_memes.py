"""Hateful Memes: is an image together with the text on it hateful?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.rules import start_of
from vlm.tasks.scoring.statistics import Metric, per_item


@register_benchmark("hateful_memes")
@register_benchmark("hm")
class HatefulMemes(StandardBenchmark):
    """Hateful Memes; ``hm`` in published configurations."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Lines ``{"id", "img", "text", "label"}``."""
        for number, line in enumerate(files.json_lines("{split}.jsonl"), start=1):
            if "label" not in line:
                raise DataError(f"{files.annotations}: line {number} has no label", fix="use a split with labels (dev)")
            if str(line["label"]) not in ("0", "1"):
                raise DataError(
                    f"{files.annotations}: line {number}: label {line['label']!r}", fix="expected is 0 or 1"
                )
            truth = "yes" if str(line["label"]) == "1" else "no"
            yield Item(str(line["id"]), line["text"], (files.image(line["img"]),), truth, {}, ("yes", "no"))


def first_word(output: str, item: Item) -> str | None:
    """Yes or no as the first word."""
    word = start_of(output)
    return word if word in ("yes", "no") else None


def probability_or_word(output: str, item: Item) -> str | None:
    """The probability of yes, as a submission has it, or the first word."""
    return output.strip() if _number(output) is not None else first_word(output, item)


def _number(text: str) -> float | None:
    try:
        found = float(text)
    except ValueError:
        return None
    return found if 0 <= found <= 1 else None


def _probability(answer: str) -> float:
    """What an answer says of yes; half and half where nothing could be read."""
    found = _number(answer)
    return {"yes": 1.0, "no": 0.0}.get(answer, 0.5) if found is None else found


def is_right(items: Sequence[Item], answers: Sequence[str]) -> list[float]:
    """Whether each answer is right: a probability from a half on is a yes."""
    said = [bool(answer) and (_probability(answer) >= 0.5) for answer in answers]
    return [
        float(bool(answer) and yes == (item.references == "yes"))
        for item, answer, yes in zip(items, answers, said, strict=True)
    ]


def challenge(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """Accuracy, and the area under the ROC curve."""
    names = [item.id for item in items]
    rows = [[_probability(a), item.references == "yes"] for item, a in zip(items, answers, strict=True)]
    return [
        per_item("accuracy", names, is_right(items, answers)),
        Metric("auroc", names, np.asarray(rows, dtype=np.float64), "auroc"),
    ]
