"""SEED-Bench: twelve dimensions by multiple choice, ranked by likelihood."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.types import Image, Video
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.rules import LETTERS

ENDINGS = (".mp4", ".webm", ".avi", ".mkv", ".MP4")


@register_benchmark("seed_bench")
@register_benchmark("seedbench")
class SeedBench(StandardBenchmark):
    """SEED-Bench: what images (dimensions 1 to 9) and videos (10 to 12) show."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``{"questions": [{question_id, question, choice_a ... answer, data_type, data_id, question_type_id}]}``."""
        data = files.json("SEED-Bench.json", "SEED-Bench*.json")
        names = {number: name for name, number in data.get("question_type", {}).items()}
        for record in data["questions"]:
            if files.split in ("all", record["data_type"]):
                number, answer = record["question_type_id"], record.get("answer")
                if answer not in (None, *LETTERS[:4]):
                    raise DataError(f"{files.annotations}: question {record['question_id']}: answer {answer!r}")
                fields = {"type": names.get(number, str(number)), "data_type": record["data_type"]}
                choices = tuple(record[f"choice_{letter}"] for letter in "abcd")
                media = (_medium(files, record),)
                yield Item(str(record["question_id"]), record["question"], media, answer, fields, choices)


def _medium(files: Files, record: dict[str, Any]) -> Image | Video:
    name = str(record["data_id"])
    if record["data_type"] == "image":
        return files.image(name)
    if record.get("segment"):
        own = f"{record['question_id']}"  # cut out beforehand: a video has several segments, each with a question
        return files.video(own, *ENDINGS)
    return files.video(name, *ENDINGS)


def first_letter(output: str, item: Item) -> str | None:
    """The first character, if it is a letter of an option."""
    first = output.strip()[:1].upper()
    return first if first and first in LETTERS[: len(item.choices)] else None


def results(items: Sequence[Item], outputs: Sequence[Answer]) -> tuple[str, str]:
    """The file of predictions that the leaderboard reads."""
    lines = [
        json.dumps({"question_id": item.id, "prediction": first_letter(str(output), item)})
        for item, output in zip(items, outputs, strict=True)
    ]
    return "seed_bench_results.json", "".join(line + "\n" for line in lines)
