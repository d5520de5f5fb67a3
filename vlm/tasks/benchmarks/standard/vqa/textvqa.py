"""TextVQA: questions about text in photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.vqa import people
from vlm.tasks.benchmarks.standard.vqa.people import capitalised as capitalised
from vlm.tasks.benchmarks.standard.vqa.people import submission as submission
from vlm.tasks.benchmarks.standard.vqa.people import until_assistant as until_assistant
from vlm.tasks.scoring import vqa
from vlm.tasks.scoring.statistics import Metric


@register_benchmark("textvqa")
class Textvqa(StandardBenchmark):
    """TextVQA 0.5.1: ten answers per question."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``{"data": [{"question_id", "image_id", "question", "answers": [text, ...]}]}``."""
        folder = "test_images" if files.split == "test" else "train_images"
        images = people.Images(files, "{name}.jpg", f"{folder}/{{name}}.jpg")
        for row in files.json("TextVQA_0.5.1_{split}.json")["data"]:
            image = images.named(name=row["image_id"])
            yield Item(str(row["question_id"]), row["question"], (image,), people.answers_of(row))


def official(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy of the TextVQA challenge."""
    return people.accuracy(items, answers, vqa.evalai, {"accuracy": "type"})
