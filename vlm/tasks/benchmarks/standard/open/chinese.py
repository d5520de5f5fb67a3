"""Two published test sets in Chinese: LLaVA's and OwlEval's questions, translated; they have no answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item


@register_benchmark("llava_zh")
class LlavaZh(StandardBenchmark):
    """LLaVA's 90 test questions in Chinese; answers are written in the published form."""

    yaml = "llava_zh"

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Records ``{"id", "image", "instruction", "type", "question_id"}``."""
        return _items(files, "llava_test_zh_questions.json", "instruction")


@register_benchmark("owleval_zh")
class OwlEvalZh(StandardBenchmark):
    """OwlEval's 82 questions in Chinese; answers are written in the published form."""

    yaml = "owleval_zh"

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Records ``{"image", "question_id", "question", "type"}``."""
        return _items(files, "owl_test_zh_questions.json", "question")


def _items(files: Files, name: str, question: str) -> Iterator[Item]:
    for record in files.json(name):
        key = str(record["question_id"])
        fields = {"type": record["type"], "record": record}
        yield Item(key, record[question], (files.image(record["image"], key),), None, fields)


def llava_file(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """The records with ``output`` after ``instruction``."""
    return _predictions(items, outputs, "instruction", "output")


def owleval_file(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """The records with ``outout`` (so spelled in the published file) after ``question``."""
    return _predictions(items, outputs, "question", "outout")


def _predictions(items: Sequence[Item], outputs: Sequence[str], after: str, key: str) -> tuple[str, str]:
    records = [_inserted(i.fields["record"], after, key, o) for i, o in zip(items, outputs, strict=True)]
    return "predictions.json", json.dumps(records, indent=2, ensure_ascii=False)


def _inserted(record: Mapping[str, Any], after: str, key: str, value: str) -> dict[str, Any]:
    result = dict[str, Any]()
    for name, own in record.items():
        result[name] = own
        if name == after:
            result[key] = value
    return result
