"""POPE: questions about objects that are, or are not, in an image of COCO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.scoring.statistics import Metric, per_item


@register_benchmark("pope")
class Pope(StandardBenchmark):
    """POPE: does the model see objects that are not there?"""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Lines ``{"question_id", "image", "text", "label"}``."""
        for line in files.json_lines("coco_pope_{split}.json"):
            image = files.image(line["image"])
            yield Item(str(line["question_id"]), line["text"], (image,), line["label"].strip().lower())


def first_sentence(output: str, item: Item) -> str:
    """``no`` if the first sentence has one of the words No, no, not, else ``yes``."""
    words = output.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def confusion(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """F1, precision and recall of ``yes``, accuracy, and the share of answers that are ``yes``."""
    names = [item.id for item in items]
    said = np.asarray([answer == "yes" for answer in answers])
    true = np.asarray([item.references == "yes" for item in items])
    hit, false, missed = said & true, said & ~true, ~said & true
    columns = np.stack([hit, false, missed], axis=1).astype(np.float64)
    return [
        Metric("f1", names, columns, "f1", unit="share"),
        per_item("accuracy", names, said == true),
        Metric("precision", names, np.stack([hit, said], axis=1).astype(np.float64), "ratio"),
        Metric("recall", names, np.stack([hit, true], axis=1).astype(np.float64), "ratio"),
        per_item("yes", names, said, better=""),
    ]
