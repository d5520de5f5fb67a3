"""MM-Vet: questions that need several abilities at once; a judge compares answers with references."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.places import nearest


@register_benchmark("mm_vet")
@register_benchmark("mmvet")
class MmVet(StandardBenchmark):
    """MM-Vet: open questions of several abilities; answers are written for its judge."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Objects ``id: {"imagename", "question", "answer", "capability"}``."""
        for name, record in files.json("mm-vet.json").items():
            image = files.image(nearest(files, record["imagename"], ["images"]), name)
            kind = ", ".join(record["capability"])
            yield Item(name, record["question"], (image,), record["answer"], {"type": kind})


def judge_file(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """``{id: answer}``, the result file that the judge's script reads."""
    answers = {item.id: output for item, output in zip(items, outputs, strict=True)}
    return "judge.json", json.dumps(answers, indent=4, ensure_ascii=False) + "\n"
