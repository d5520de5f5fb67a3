"""OwlEval: 82 open questions about 50 images, which people grade."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.places import nearest

MODEL = "vlm"


@register_benchmark("owleval")
class OwlEval(StandardBenchmark):
    """OwlEval: open questions; answers are written in the form that people grade."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Lines ``{"image", "question_id", "question", "ability", "category"}``."""
        for line in files.json_lines("questions.jsonl"):
            image = files.image(nearest(files, line["image"], ["cases"]), str(line["question_id"]))
            own = {k: line[k] for k in ("image", "question_id")}
            yield Item(str(line["question_id"]), line["question"], (image,), None, own | {"type": line["ability"]})


def answer_file(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """Lines as in the benchmark's folder ``answer``."""
    lines = []
    for item, output in zip(items, outputs, strict=True):
        line = {"image": item.fields["image"], "question_id": item.fields["question_id"], "question": item.question}
        lines.append(json.dumps(line | {"answer": output, "model_id": MODEL}) + "\n")
    return "answer.jsonl", "".join(lines)
