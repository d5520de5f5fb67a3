"""IconQA, the sub-task in which a text is chosen; also called IconVQA."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.choice.letters import numbered as numbered
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.places import first_there
from vlm.tasks.benchmarks.standard.rules import LETTERS

KIND = "choose_txt"


@register_benchmark("iconqa")
@register_benchmark("iconvqa")
class IconQa(StandardBenchmark):
    """IconQA: questions about diagrams of icons."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``choose_text_{split}.json``, a list, or the original ``problems.json`` with ``pid_splits.json``."""
        data = files.json("choose_text_{split}.json", "problems.json")
        if isinstance(data, list):
            for number, record in enumerate(data):
                name = str(record.get("question_id", number))  # several questions may be about an image
                yield _item(files, name, f"{record['image_id']}/image.png", record)
            return
        for name in files.json("pid_splits.json")[files.split or "train"]:
            if data[name].get("ques_type", KIND) == KIND:
                split = data[name].get("split", files.split)
                places = [f"{split}/{KIND}/{name}/image.png", f"{name}/image.png"]
                yield _item(files, str(name), first_there(files, places), data[name])


def _item(files: Files, name: str, image: str, record: Mapping[str, Any]) -> Item:
    choices, answer = tuple(map(str, record["choices"])), record["answer"]
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(
            f"{files.annotations}: question {name}: answer {answer!r} of {len(choices)} choices",
            fix="expected is the number of the choice, from 0",
        )
    fields = {"type": record.get("grade")}
    return Item(name, record["question"], (files.image(image),), LETTERS[answer], fields, choices)
