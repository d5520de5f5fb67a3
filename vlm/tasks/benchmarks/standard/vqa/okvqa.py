"""OK-VQA: questions about images of COCO that need knowledge from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.vqa import people
from vlm.tasks.benchmarks.standard.vqa.people import submission as submission
from vlm.tasks.benchmarks.standard.vqa.people import until_assistant as until_assistant
from vlm.tasks.scoring import vqa
from vlm.tasks.scoring.statistics import Metric

BY = {"accuracy": "type"}


@register_benchmark("ok_vqa")
@register_benchmark("okvqa")
class Okvqa(StandardBenchmark):
    """OK-VQA: questions that need knowledge from outside of the image."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """As VQA's files; the answers are stems, ``question_types`` names the categories."""
        rows, notes, whole = people.pair(
            files,
            [
                "okvqa_test_split.json",
                "okvqa/okvqa_test_split.json",
                "OpenEnded_mscoco_{split}2014_questions.json",
                "OpenEnded_mscoco_{split}2014_questions_clean.json",
            ],
            [
                "mscoco_{split}2014_annotations.json",
                "mscoco_{split}2014_annotations_clean.json",
                "okvqa/mscoco_{split}2014_annotations_clean.json",
            ],
        )
        base, kinds = f"{files.split}2014", whole.get("question_types", {})
        name = f"COCO_{base}_{{id:012d}}.jpg"
        images = people.Images(files, name, f"{base}/{name}", "{id:012d}.jpg")
        for row in rows:
            note = notes[str(row["question_id"])]
            kind = note.get("question_type")
            image = images.named(id=int(row["image_id"]))
            fields = {"type": kinds.get(kind, kind), "answer_type": note.get("answer_type")}
            yield Item(str(row["question_id"]), row["question"], (image,), people.answers_of(note), fields)


def lower(output: str, item: Item) -> str:
    """As the published script stores an answer: in lower case and without ``<unk>``."""
    return output.lower().replace("<unk>", "").strip()


def official(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy of the VQA script, by category."""
    return people.accuracy(items, answers, vqa.official, BY)


def published(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy of the VQA script's copy that compares in lower case."""
    return people.accuracy(items, answers, vqa.caseless, BY)


def lmms(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy after the TextVQA challenge's processor."""
    return people.accuracy(items, answers, vqa.evalai, BY)
