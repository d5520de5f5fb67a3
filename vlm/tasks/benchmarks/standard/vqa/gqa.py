"""GQA: questions made from scene graphs, with one answer each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.vqa import people
from vlm.tasks.scoring.statistics import Metric, per_item
from vlm.tasks.scoring.texts import bare

PARTS = {
    "by semantic type": "semantic",
    "by reasoning steps": "steps",
    "by question length": "words",
}
SEMANTIC = {"attr": "attribute", "cat": "category", "global": "scene", "obj": "object", "rel": "relation"}
UNCOUNTED = ("exist", "query: name", "choose name")
"""Operations that the script does not count as steps of reasoning."""


@register_benchmark("gqa")
class Gqa(StandardBenchmark):
    """GQA: questions made from scene graphs, with one short answer."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``{id: {"imageId", "question", "answer", "types", "semantic", "isBalanced"}}``, or a list of records."""
        data = files.json("{split}_balanced_questions.json", "*/{split}_balanced_questions.json")
        images = people.Images(files, "{name}", "images/{name}")
        pairs = data.items() if isinstance(data, Mapping) else _numbered(data)
        for name, row in pairs:
            image = images.named(name=row["image"] if "image" in row else f"{row['imageId']}.jpg")
            answer = row.get("answer")
            yield Item(name, row["question"], (image,), None if answer is None else str(answer), _fields(row))


def _numbered(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(str(row.get("question_id", k)), row) for k, row in enumerate(rows)]


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {"words": str(len(row["question"].split())), "balanced": row.get("isBalanced", True)}
    if "types" in row:
        kind = row["types"]["semantic"]
        result |= {"type": row["types"]["structural"], "semantic": SEMANTIC.get(kind, kind)}
    if "semantic" in row:
        steps = [f"{s['operation']}: {s['argument']}" for s in row["semantic"]]
        result["steps"] = str(sum(not any(part in step for part in UNCOUNTED) for step in steps))
    return result


def official(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy of GQA's script over balanced questions, of binary and open ones, and by type."""
    both = list(zip(*people.known(items, answers), strict=True))
    counted = [(item, answer == item.references) for item, answer in both if item.fields["balanced"]]
    typed = [(item, hit) for item, hit in counted if "type" in item.fields]
    result = [_share("accuracy", counted, "type")] if counted else []
    for label, is_open in (("binary", False), ("open", True)):
        part = [(item, hit) for item, hit in typed if (item.fields["type"] == "query") is is_open]
        result += [_share(label, part)] if part else []
    return result + [_share(label, counted, name) for label, name in PARTS.items() if typed]


def lmms(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """Equality in lower case and without punctuation."""
    both = list(zip(*people.known(items, answers), strict=True))
    found = [(item, bare(answer) == bare(item.references)) for item, answer in both]
    return [_share("accuracy", found, "type")] if found else []


def published(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The accuracy of a published evaluation: the answer in lower case is the reference."""
    found = [(item, answer == item.references) for item, answer in zip(*people.known(items, answers), strict=True)]
    return [_share("accuracy", found, "type")] if found else []


def _share(label: str, found: Sequence[tuple[Item, bool]], group: str = "") -> Metric:
    groups = [item.fields.get(group) for item, _ in found] if group else ()
    return per_item(label, [item.id for item, _ in found], [float(hit) for _, hit in found], groups=groups)


def lower(output: str, item: Item) -> str:
    """The answer in lower case."""
    return output.lower()


def submission(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """``[{"questionId", "prediction"}]``, which the script reads."""
    rows = [{"questionId": item.id, "prediction": str(o)} for item, o in zip(items, outputs, strict=True)]
    return people.results(rows)
