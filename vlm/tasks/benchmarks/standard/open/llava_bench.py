"""LLaVA-Bench in the wild: conversation, description and reasoning; a judge compares answers with those of GPT-4."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.places import nearest

MODEL = "vlm"


@register_benchmark("llava_bench")
@register_benchmark("llava_in_the_wild")
class LlavaBench(StandardBenchmark):
    """LLaVA-Bench in the wild: open questions; answers are written for its judge."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Lines ``{"question_id", "image", "text", "category"}``."""
        for line in files.json_lines("questions.jsonl"):
            name = str(line["question_id"])
            image = files.image(nearest(files, line["image"], ["images"]), name)
            fields = {"type": line["category"], "question_id": line["question_id"]}
            yield Item(name, line["text"], (image,), None, fields)


def judge_file(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """Lines as the judge's script reads them; it pairs them with the questions by their order."""
    lines = []
    for item, output in zip(items, outputs, strict=True):
        key = hashlib.sha256(f"{item.id}\0{output}".encode("utf-8", "surrogatepass")).hexdigest()[:22]
        line = {"question_id": item.fields["question_id"], "prompt": item.question, "text": output.strip()}
        lines.append(json.dumps(line | {"answer_id": key, "model_id": MODEL, "metadata": {}}) + "\n")
    return "judge.jsonl", "".join(lines)
