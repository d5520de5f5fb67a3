"""A-OKVQA: questions that need common sense and knowledge, answered directly or by one of four choices."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard import rules
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.rules import LETTERS
from vlm.tasks.benchmarks.standard.vqa import people
from vlm.tasks.scoring.statistics import Metric, per_item

ENOUGH = 3.0
"""So many equal answers of people make an answer fully right."""
_LETTER = re.compile(r"\(?([A-Z])\)?(?:[.:)].*)?", re.DOTALL)


@register_benchmark("aokvqa")
class Aokvqa(StandardBenchmark):
    """A-OKVQA, direct answers."""

    yaml = "aokvqa"
    multiple = False

    @classmethod
    def read(cls, files: Files) -> Iterator[Item]:  # type: ignore[override]
        """``[{"question_id", "image_id", "question", "choices", "correct_choice_idx", "direct_answers"}]``."""
        name, folder = "{id:012d}.jpg", files.split.split("_")[0] + "2017"
        images = people.Images(files, name, f"{folder}/{name}")
        for row in files.json("aokvqa_v1p0_{split}.json"):
            choices, place = tuple(row["choices"]), row.get("correct_choice_idx")
            direct = tuple(row["direct_answers"]) if "direct_answers" in row else None
            right = None if place is None else choices[place]
            image = images.named(id=int(row["image_id"]))
            fields = {"difficult": bool(row.get("difficult_direct_answer"))}
            references = right if cls.multiple else direct
            yield Item(row["question_id"], row["question"], (image,), references, fields, choices)


@register_benchmark("aokvqa_mc")
class AokvqaChoice(Aokvqa):
    """A-OKVQA, multiple choice."""

    yaml = "aokvqa_mc"
    multiple = True


def direct(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """A third for each person with the answer, to the letter, at most 1; without questions marked as difficult."""
    values = shares(items, answers)
    easy = [(item.id, value) for item, value in zip(items, values, strict=True) if value is not None]
    return [per_item("accuracy", [name for name, _ in easy], [value for _, value in easy])] if easy else []


def shares(items: Sequence[Item], answers: Sequence[str]) -> list[float | None]:
    """The score of each answer; None for a difficult question and for one without references."""
    return [
        None
        if item.references is None or item.fields["difficult"]
        else min(1.0, item.references.count(answer) / ENOUGH)
        for item, answer in zip(items, answers, strict=True)
    ]


def choice(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The share of right choices."""
    pairs = list(zip(*people.known(items, answers), strict=True))
    hits = [float(answer == item.references) for item, answer in pairs]
    return [per_item("accuracy", [item.id for item, _ in pairs], hits)] if pairs else []


def chosen(output: str, item: Item) -> str | None:
    """The text of a choice: the answer itself, or what its letter (``B``, ``(B)``, ``B. train``) names."""
    text = output.strip()
    if text in item.choices:
        return text
    found = _LETTER.fullmatch(text)
    place = LETTERS.index(found[1]) if found else len(item.choices)
    return item.choices[place] if place < len(item.choices) else None


def example_answer(item: Item) -> str:
    """What an example answers: the letter of the right choice, or what most people said."""
    if isinstance(item.references, str):
        return LETTERS[item.choices.index(item.references)]
    return rules.example_answer(item)


def submission(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """``{question_id: {"direct_answer"}}`` for the leaderboard."""
    found = {item.id: {"direct_answer": str(o)} for item, o in zip(items, outputs, strict=True)}
    return "results.json", json.dumps(found)


def submission_mc(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """``{question_id: {"multiple_choice"}}`` for the leaderboard."""
    found = {item.id: {"multiple_choice": chosen(o, item) or str(o)} for item, o in zip(items, outputs, strict=True)}
    return "results.json", json.dumps(found)
