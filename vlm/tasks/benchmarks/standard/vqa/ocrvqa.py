"""OCR-VQA: questions about covers of books."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.vqa import people
from vlm.tasks.scoring.statistics import Metric, per_item

SPLITS = {"train": 1, "val": 2, "test": 3}


@register_benchmark("ocr_vqa")
@register_benchmark("ocrvqa")
class Ocrvqa(StandardBenchmark):
    """OCR-VQA-200K: several questions about each cover."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``{key: {"imageURL", "questions", "answers", "genre", "split"}}``; ids are ``key_0``, ``key_1``."""
        images = people.Images(files, "{name}", "images/{name}")
        for key, row in files.json("dataset.json").items():
            if row["split"] != SPLITS[files.split]:
                continue
            ending = PurePosixPath(urlsplit(row.get("imageURL", "")).path).suffix or ".jpg"
            image = images.named(name=key + ending)
            for number, (question, answer) in enumerate(zip(row["questions"], row["answers"], strict=True)):
                yield Item(f"{key}_{number}", question, (image,), str(answer), {"type": row.get("genre")})


def accuracy(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The share of equal answers, to the letter and without regard to case."""
    names, groups = [i.id for i in items], [i.fields["type"] for i in items]
    pairs = [(answer.strip(), item.references.strip()) for item, answer in zip(items, answers, strict=True)]
    return [
        per_item("accuracy", names, [float(a == b) for a, b in pairs], groups=groups),
        per_item("case ignored", names, [float(a.casefold() == b.casefold()) for a, b in pairs]),
    ]
