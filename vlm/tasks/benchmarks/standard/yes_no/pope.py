"""POPE: questions about objects that are, or are not, in an image of COCO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.scoring.statistics import Metric
from vlm.tasks.scoring.yes_no import by_set

SETS = ("random", "popular", "adversarial")
ALL = "all"
"""The split of the three sets together."""


@register_benchmark("pope")
class Pope(StandardBenchmark):
    """POPE: does the model see objects that are not there?"""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Lines ``{"question_id", "image", "text", "label"}``; ids of ``all`` begin with the set's name."""
        whole = files.split == ALL
        for name in SETS if whole else [files.split]:
            for line in files.json_lines(f"coco_pope_{name}.json"):
                number, label = str(line["question_id"]), line["label"].strip().lower()
                if label not in ("yes", "no"):
                    raise DataError(f"{files.used[-1]}: question {number}: label {label!r:.60}", fix="yes or no")
                fields = {"type": name} if whole else {}
                image = files.image(line["image"])
                yield Item(
                    f"{name}/{number}" if whole else number, line["text"], (image,), label, fields, ("yes", "no")
                )


def first_sentence(output: str, item: Item) -> str:
    """``no`` if the first sentence has one of the words No, no, not, else ``yes``."""
    words = output.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def confusion(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """F1, precision and recall of ``yes``, accuracy, and the share of answers ``yes``: means over the sets."""
    said, true, sets = _read(items, answers)
    return _metrics(items, said, true, missed=~said & true, share=said, sets=sets)


def pooled(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """As lmms-eval counts: all sets as one; what is neither yes nor no is not a miss; the share of true ``yes``."""
    said, true, sets = _read(items, answers)
    missed = np.asarray([answer == "no" for answer in answers]) & true
    given = np.asarray([bool(answer) for answer in answers])
    return _metrics(items, said, true, missed, share=true, sets=np.zeros_like(sets), given=given)


Flags = np.ndarray


def _read(items: Sequence[Item], answers: Sequence[str]) -> tuple[Flags, Flags, Flags]:
    """Whether yes is said, whether it is true, and the number of the set."""
    names = [item.fields.get("type", "") for item in items]
    numbers = {name: k for k, name in enumerate(dict.fromkeys(names))}
    said = np.asarray([answer == "yes" for answer in answers])
    return said, np.asarray([item.references == "yes" for item in items]), np.asarray([numbers[n] for n in names])


def _metrics(
    items: Sequence[Item],
    said: Flags,
    true: Flags,
    missed: Flags,
    share: Flags,
    sets: Flags,
    given: Flags | None = None,
) -> list[Metric]:
    units, groups = [item.id for item in items], [item.fields.get("type") for item in items]
    hit = said & true
    right = said == true if given is None else (said == true) & given

    def metric(label: str, total: str, *columns: Flags) -> Metric:
        return Metric(label, units, by_set(sets.astype(np.intp), *columns), total, groups)

    one = np.ones_like(said)
    return [
        metric("f1", "f1_of_sets", hit, said & ~true, missed),
        metric("accuracy", "ratio_of_sets", right, one),
        metric("precision", "ratio_of_sets", hit, said),
        metric("recall", "ratio_of_sets", hit, hit | missed),
        replace(metric("yes", "ratio_of_sets", share, one), better=""),
    ]
