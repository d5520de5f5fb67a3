"""The same questions answered by all combinations side by side."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError
from vlm.common.numbers import JSON_NUMBERS
from vlm.common.text import lines_of, read_text
from vlm.pages.compare_eval import media_uri

if TYPE_CHECKING:
    from vlm.runners.study.report.effects import Key
    from vlm.runners.study.report.summary import Summary
    from vlm.runners.study.results import CellResult

COUNT = 10
"""Questions that are shown."""
CANDIDATES = 80
"""Questions that are looked for in all files at first."""
SIDE = 176
"""Longest side of an image in pixels."""
LONGEST = 300
"""Characters of a text that are shown."""
MOST = 1 << 28
"""Largest file of answers in bytes."""


@dataclass(frozen=True)
class Given:
    """What the seeds of a combination answered: one text, how many gave it, and whether it is right (None: unknown)."""

    text: str
    count: int
    right: bool | None


@dataclass(frozen=True)
class Example:
    """A question, its reference, its images as addresses, and the answers of each combination."""

    question: str
    reference: str
    images: Sequence[str]
    answers: Mapping[Key, Sequence[Given]]


@dataclass(frozen=True)
class Examples:
    """What is shown of a dataset; ``notes``: what could not be read or shown."""

    dataset: str
    examples: Sequence[Example]
    notes: Sequence[str] = ()


def examples(summary: Summary, roots: Mapping[str, str], count: int = COUNT, seed: int = 0) -> Examples:
    """Questions that all cells answered, drawn with a seed; those with other images first.

    Args:
        summary: of the study.
        roots: dataset -> the only folder that its images are read from.
        count: of questions.
        seed: of the draw.
    """
    dataset = _dataset(summary)
    files = [(result, result.answers[dataset]) for result in summary.results if dataset in result.answers]
    notes: list[str] = []
    answered: list[tuple[CellResult, dict[str, dict[str, Any]]]] = []
    wanted: set[str] | None = None
    order: list[str] = []
    for result, file in files:
        try:
            rows = {str(row.get("id")): row for row in reversed(list(_rows(file, dataset))) if not row.get("error")}
        except DataError as error:
            notes.append(f"{summary.study.named(result.cell.key)}, seed {result.cell.seed}: {error}")
            continue
        if wanted is None:
            order = sorted(rows)
            random.Random(seed).shuffle(order)
            wanted = set(order[:CANDIDATES])
        answered.append((result, {key: row for key, row in rows.items() if key in wanted}))
    shared = set(wanted or ()).intersection(*(rows for _, rows in answered)) if answered else set()
    chosen = _distinct([key for key in order if key in shared], answered[0][1], count) if shared else []
    if answered and not shared:
        notes.append("No question was answered by all cells.")
    found = [_example(key, answered, roots.get(dataset, "")) for key in chosen]
    if found and not any(example.images for example in found):
        notes.append("Images are shown with --media-root DIR, the folder that they are in.")
    return Examples(dataset, found, notes)


def _dataset(summary: Summary) -> str:
    known = [dataset for result in summary.results for dataset in result.answers]
    return summary.measure.dataset if summary.measure.dataset in known else next(iter(known), "")


def _rows(file: Path, dataset: str) -> Iterator[dict[str, Any]]:
    """Lines about the right images of a dataset. Raises DataError: unreadable, or not lines of JSON objects."""
    for number, line in enumerate(lines_of(read_text(file, max_bytes=MOST)), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, **JSON_NUMBERS)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{file}:{number}: expected an object, found {type(row).__name__}")
        if row.get("dataset", dataset) == dataset and row.get("image", "right") == "right":
            yield row


def _distinct(order: Sequence[str], rows: Mapping[str, Mapping[str, Any]], count: int) -> list[str]:
    """The first questions that are about an image of their own, then others."""
    first: dict[str, str] = {}
    for key in order:
        first.setdefault(repr(rows[key].get("media") or key), key)
    own = list(first.values())
    return [*own, *(key for key in order if key not in set(own))][:count]


def _example(key: str, answered: Sequence[tuple[CellResult, Mapping[str, Mapping[str, Any]]]], root: str) -> Example:
    first = answered[0][1][key]
    media = first.get("media")
    paths = [path for path in media if isinstance(path, str)] if isinstance(media, list) else []
    images = [uri for path in paths[:2] if (uri := media_uri(path, root, SIDE))]
    given: dict[Key, dict[tuple[str, bool | None], int]] = {}
    for result, rows in answered:
        row = rows[key]
        one = _text(row.get("answer")), _right(row)
        counts = given.setdefault(result.cell.key, {})
        counts[one] = counts.get(one, 0) + 1
    answers = {
        combination: [
            Given(text, count, right) for (text, right), count in sorted(counts.items(), key=lambda at: -at[1])
        ]
        for combination, counts in given.items()
    }
    return Example(_text(first.get("question")), _text(first.get("reference")), images, answers)


def _right(row: Mapping[str, Any]) -> bool | None:
    value = row.get("right", row.get("score"))
    if isinstance(value, bool):
        return value
    return {0.0: False, 1.0: True}.get(float(value)) if isinstance(value, int | float) else None


def _text(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
