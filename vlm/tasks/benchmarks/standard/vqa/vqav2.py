"""VQAv2: open questions about images of COCO, each with ten people's answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.vqa import people
from vlm.tasks.benchmarks.standard.vqa.people import submission as submission
from vlm.tasks.scoring import vqa
from vlm.tasks.scoring.statistics import Metric

BY = {"accuracy": "answer_type", "by question type": "type"}
FOLDERS = {"val": "val2014", "train": "train2014", "test": "test2015", "test-dev": "test2015"}


@register_benchmark("vqav2")
class Vqav2(StandardBenchmark):
    """VQAv2: questions and annotations in two files."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``{"question_id", "image_id", "question"}``, and ``{"question_type", "answer_type", "answers"}``."""
        base, year = FOLDERS[files.split], FOLDERS[files.split][-4:]
        rows, notes, _ = people.pair(
            files,
            [f"v2_OpenEnded_mscoco_{{split}}{year}_questions.json", f"OpenEnded_mscoco_{{split}}{year}_questions.json"],
            [f"v2_mscoco_{{split}}{year}_annotations.json", f"mscoco_{{split}}{year}_annotations.json"],
        )
        name = f"COCO_{base}_{{id:012d}}.jpg"
        images = people.Images(files, name, f"{base}/{name}", "{id:012d}.jpg")
        for row in rows:
            note = notes.get(str(row["question_id"]))
            fields = {"type": note["question_type"], "answer_type": note["answer_type"]} if note else {}
            image = images.named(id=int(row["image_id"]))
            yield Item(str(row["question_id"]), row["question"], (image,), people.answers_of(note), fields)


def official(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy of the VQA script, by type of answer and by type of question."""
    return people.accuracy(items, answers, vqa.official, BY)


def lmms(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The same, but all texts are normalised."""
    return people.accuracy(items, answers, vqa.always, BY)
