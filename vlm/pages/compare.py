"""Answers of several models to the same questions, side by side with their images, as one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.pages.parts import image_uri, render

ANSWERS = ("output", "outout", "text_output", "answer")
"""Fields of a prediction file that hold the answer; the second is how the published OwlEval file spells it."""

QUESTIONS = ("instruction", "question", "prompt")
IDS = ("question_id", "index")
SIDE = 560
"""Largest side of an embedded image in pixels."""

KINDS = {"knowledeg vqa": "knowledge vqa"}
"""Published misspellings of question types -> what is shown."""


@dataclass(frozen=True)
class Predictions:
    """A prediction file: its name on the page, and its records by id, in order."""

    name: str
    records: dict[Any, dict[str, Any]]

    def answer(self, key: Any) -> str | None:
        """The answer to a question, or None."""
        record = self.records.get(key, {})
        field = first_of(ANSWERS, record)
        return None if field is None else str(record[field])


def read_predictions(file: str | Path, name: str = "") -> Predictions:
    """Read a JSON array or JSON lines: records with a question and, if answered, an answer in one of ``ANSWERS``.

    Raises DataError: no such file, no records, records without a question, or one id twice.
    """
    from vlm.datasets.base import read_json, records_of

    path = Path(file)
    rows = records_of(read_json(path, "predictions"), str(path))
    if not rows or all(first_of(QUESTIONS, row) is None for row in rows):
        raise DataError(
            f"{path}: {'no record' if not rows else 'records without a question'}",
            fix=f"the question is expected in {', '.join(QUESTIONS)}",
        )
    by = next((field for field in IDS if all(field in row for row in rows)), None)
    result: dict[Any, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        key = number if by is None else str(row[by])
        if key in result:
            raise DataError(f"{path}: {by} {key} occurs twice", fix="give each question its own id")
        result[key] = row
    return Predictions(name or path.stem, result)


def compare(files: Sequence[Predictions]) -> None:
    """Check that the files answer the same questions.

    Raises DataError: an id has another question in another file, or two files share no question.
    """
    first = files[0]
    for other in files[1:]:
        shared = first.records.keys() & other.records.keys()
        if not shared:
            raise DataError(f"{first.name} and {other.name} have no question in common", fix="compare other files")
        for key in shared:
            mine, theirs = (text_of(QUESTIONS, f.records[key]) for f in (first, other))
            if mine != theirs:
                raise DataError(f"question {key} is {mine!r} in {first.name} and {theirs!r} in {other.name}")


def page(files: Sequence[Predictions], folder: str | Path = "", title: str = "") -> tuple[str, list[str]]:
    """The page, and the names of missing images.

    Args:
        files: from :func:`read_predictions`; the first gives the order.
        folder: what the records' image paths are relative to.
        title: heading of the page.

    Raises:
        DataError: see :func:`compare`; or an image exists but cannot be read.
    """
    compare(files)
    keys = list(dict.fromkeys(key for file in files for key in file.records))
    records = {key: next(f.records[key] for f in files if key in f.records) for key in keys}
    lost: list[str] = []
    pairs = []
    for image, group in groupby(keys, key=lambda k: str(records[k].get("image") or "")):
        found = bool(image) and (Path(folder) / image).is_file()
        lost += [image] if image and not found else []
        questions = [
            {
                "key": key,
                "kind": kind_of(records[key]),
                "text": text_of(QUESTIONS, records[key]),
                "answers": [(file.name, file.answer(key)) for file in files],
            }
            for key in group
        ]
        uri = image_uri(Path(folder) / image, SIDE) if found else ""
        pairs.append({"image": image, "uri": uri, "questions": questions})
    text = render(
        "compare.html",
        title=title or f"{len(keys)} questions, {len(files)} prediction files",
        script="compare.js",
        kind="wide",
        kinds=list(dict.fromkeys(kind_of(record) for record in records.values() if kind_of(record))),
        summary=[_summary(file, keys) for file in files],
        pairs=pairs,
    )
    return text, lost


def _summary(file: Predictions, keys: Sequence[Any]) -> tuple[str, str, str]:
    answers = [a for key in keys if (a := file.answer(key)) is not None]
    mean = f"{sum(map(len, answers)) / len(answers):.0f}" if answers else ""
    return file.name, f"{len(answers)} of {len(keys)}", mean


def first_of(names: Sequence[str], record: dict[str, Any]) -> str | None:
    """The first of these fields that a record has."""
    return next((name for name in names if record.get(name) is not None), None)


def text_of(names: Sequence[str], record: dict[str, Any]) -> str:
    """The text of the first of these fields that a record has."""
    name = first_of(names, record)
    value = "" if name is None else record[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def kind_of(record: dict[str, Any]) -> str:
    """The type of a question, published misspellings corrected."""
    kind = str(record.get("type") or "")
    return KINDS.get(kind, kind)
