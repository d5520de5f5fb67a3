"""VizWiz: questions that blind people asked about photographs they took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.vqa import people
from vlm.tasks.benchmarks.standard.vqa.people import until_assistant as until_assistant
from vlm.tasks.scoring import vqa
from vlm.tasks.scoring.statistics import Metric, per_item

BY = {"accuracy": "type", "by answerable": "answerable"}


@register_benchmark("vizwiz_vqa")
@register_benchmark("vizwiz")
class Vizwiz(StandardBenchmark):
    """VizWiz VQA: one question per image."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``[{"image", "question", "answers", "answer_type", "answerable"}]``."""
        images = people.Images(files, "{name}", f"{files.split}/{{name}}")
        for row in files.json("{split}.json", "Annotations/{split}.json", "vizwiz/{split}.json"):
            fields = {"type": row.get("answer_type")}
            if "answerable" in row:
                fields["answerable"] = "answerable" if row["answerable"] else "unanswerable"
            image = images.named(name=row["image"])
            yield Item(row["image"], row["question"], (image,), people.answers_of(row), fields)


def asked_by_lmms(item: Item) -> str:
    """lmms-eval's prompt."""
    return item.question.capitalize() + people.UNANSWERABLE + people.SHORT


def official(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy of VizWiz's script, by type of answer, and of answerable questions and others."""
    return people.accuracy(items, answers, vqa.vizwiz, BY)


def lmms(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy after the TextVQA challenge's processor."""
    return people.accuracy(items, answers, vqa.evalai, BY)


def published(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """A published accuracy: nobody is left out, only case is ignored, and ``_`` separates references."""
    items, answers = people.known(items, answers)
    values = [vqa.of_all(a, "_".join(item.references).split("_")) for item, a in zip(items, answers, strict=True)]
    names = [item.id for item in items]
    return [per_item("accuracy", names, values, groups=[i.fields.get("type") for i in items])] if items else []


def submission(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """``[{"image", "answer"}]`` for the server."""
    rows = [{"image": i.id, "answer": str(o)} for i, o in zip(items, outputs, strict=True)]
    return people.results(rows)
