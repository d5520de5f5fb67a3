"""What benchmarks with the answers of several people share: pairs of files, images of COCO, prompts, the accuracy."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.common.types import Image
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.scoring.statistics import Metric, per_item
from vlm.tasks.scoring.vqa import Rule, accuracies


class Images:
    """Finds images whose name and folder depend on how a data set was unpacked: the pattern that fitted last first."""

    def __init__(self, files: Files, *patterns: str) -> None:
        """``patterns`` with fields, e.g. ``val2014/COCO_val2014_{id:012d}.jpg``, below the folder of the media."""
        self._folder, self._patterns = str(files.folder()), list(patterns)

    def named(self, **values: Any) -> Image:
        """The image with these values; of the first pattern if no file exists."""
        for place, pattern in enumerate(self._patterns):
            path = os.path.join(self._folder, pattern.format(**values))
            if os.path.exists(path):
                self._patterns.insert(0, self._patterns.pop(place))
                return Image(path)
        return Image(os.path.join(self._folder, self._patterns[0].format(**values)))


def pair(
    files: Files, questions: Sequence[str], annotations: Sequence[str]
) -> tuple[list[Mapping[str, Any]], dict[str, Mapping[str, Any]], Mapping[str, Any]]:
    """Questions, annotation by question id, and the annotation file itself; the latter two are empty for a test split.

    If one of the two files is given, the other is looked for beside it.

    Raises DataError: a question without annotation, or an annotation without question.
    """
    first = files.json(*questions)
    notes: Mapping[str, Any] = {}
    if isinstance(first, Mapping) and "annotations" in first:
        notes, first = first, files.json(*questions)
    elif not files.split.startswith("test") or _has(files, annotations):
        notes = files.json(*annotations)
    rows = first["questions"] if isinstance(first, Mapping) else first
    found: dict[str, Mapping[str, Any]] = {}
    for note in notes.get("annotations", ()):
        if str(note["question_id"]) in found:
            raise DataError(
                f"{files.used[-1]}: question_id {note['question_id']} occurs twice", fix="give the original file"
            )
        found[str(note["question_id"])] = note
    asked = {str(row["question_id"]) for row in rows}
    if notes and asked != found.keys():
        raise DataError(
            f"{' and '.join(str(file) for file in files.used)}: {len(asked - found.keys())} questions have no "
            f"annotation, {len(found.keys() - asked)} annotations have no question",
            fix="give questions and annotations of the same split",
        )
    return list(rows), found, notes


def _has(files: Files, patterns: Sequence[str]) -> bool:
    return any(list(files.root().glob(pattern.replace("{split}", files.split))) for pattern in patterns)


def answers_of(note: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The people's answers in order; None for a question of a test split."""
    if note is None or not note.get("answers"):
        return None
    return tuple(str(a["answer"] if isinstance(a, Mapping) else a) for a in note["answers"])


def known(items: Sequence[Item], answers: Sequence[str]) -> tuple[list[Item], list[str]]:
    """Those with references: a test split has none."""
    both = [(item, answer) for item, answer in zip(items, answers, strict=True) if item.references is not None]
    return [item for item, _ in both], [answer for _, answer in both]


def accuracy(items: Sequence[Item], answers: Sequence[str], rule: Rule, by: Mapping[str, str]) -> list[Metric]:
    """The VQA accuracy by a rule; its groups are those of the first field, and each further one has its own row.

    Args:
        items: the questions.
        answers: of the model.
        rule: how texts are compared.
        by: label -> field of the items; the first label is the metric's name.
    """
    items, answers = known(items, answers)
    if not items:
        return []
    values, names = accuracies(answers, [item.references for item in items], rule), [item.id for item in items]
    return [
        per_item(label, names, values, groups=[item.fields.get(name) for item in items]) for label, name in by.items()
    ]


def results(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """A file for a server: its name and content."""
    return "results.json", json.dumps(rows)


def submission(items: Sequence[Item], outputs: Sequence[str]) -> tuple[str, str]:
    """``[{"question_id", "answer"}]``, which the VQA script and the servers read."""
    rows = [{"question_id": number(i.id), "answer": str(o)} for i, o in zip(items, outputs, strict=True)]
    return results(rows)


def number(text: str) -> int | str:
    """An id as the annotation files have it."""
    return int(text) if re.fullmatch(r"\d+", text) else text


def until_assistant(output: str, item: Item) -> str:
    """The answer up to a second turn, where lmms-eval's tasks end it."""
    return output.split("ASSISTANT:")[0]


SHORT = "\nAnswer the question using a single word or phrase."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


def capitalised(item: Item) -> str:
    """lmms-eval's question: the first letter large, all others small, and a request for a short answer."""
    return item.question.capitalize() + SHORT
