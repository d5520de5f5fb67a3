"""MMBench: each question is asked with its options in every order (circular evaluation)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.types import Image
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.choice.letters import by_first_match as by_first_match
from vlm.tasks.benchmarks.standard.choice.letters import by_letter_or_text as by_letter_or_text
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.rules import LETTERS, is_right, options_of
from vlm.tasks.scoring.statistics import Metric

TURN = 1_000_000
"""What is added to the index of a question for each turn of its options."""
SHORT = 64
"""Characters of an image field that names another row instead of holding an image."""


@register_benchmark("mmbench")
class MMBench(StandardBenchmark):
    """MMBench: a question counts if it is answered rightly in every order of its options."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """A table with index, question, hint, A to D, answer, category, l2-category and image (base64)."""
        upper = files.split.upper()
        names = (f"MMBench_{upper}_EN.tsv", f"MMBench_{upper}_*.tsv", f"mmbench_{files.split}_*.tsv")
        rows = files.table(*names)
        images = {row["index"]: row["image"] for row in rows}
        read = dict[str, Image]()
        items = []
        for row in rows:
            owner = row["image"] if len(row["image"]) <= SHORT and row["image"] in images else row["index"]
            if owner not in read:
                read[owner] = files.image(images[owner], f"{files.annotations}: index {row['index']}")
            items.append(_item(row, read[owner], str(files.annotations)))
        turned = any(int(item.id) >= TURN for item in items)
        yield from items if turned else (turn for item in items for turn in _turns(item))


def _item(row: Mapping[str, str], image: Image, where: str) -> Item:
    present = [row.get(letter) or "nan" for letter in LETTERS[:5]]
    count = next((k for k, text in enumerate(present) if text == "nan"), len(present))
    answer = (row.get("answer") or "").strip()
    if answer and answer not in LETTERS[:count]:
        raise DataError(f"{where}: index {row['index']}: answer {answer!r} of {count} options", fix="see the file")
    hint = row.get("hint") or ""
    fields: dict[str, Any] = {
        "hint": "" if hint == "nan" else hint,
        "unit": str(int(row["index"]) % TURN),
        "type": row.get("l2-category") or row.get("L2-category") or None,
        "category": row.get("category") or None,
    }
    return Item(str(int(row["index"])), row["question"], (image,), answer or None, fields, tuple(present[:count]))


def _turns(item: Item) -> Iterator[Item]:
    """A question with its options in every order, each one place further to the front than in the one before."""
    count = len(item.choices)
    for turn in range(count):
        choices = item.choices[turn:] + item.choices[:turn]
        answer = item.references and LETTERS[(LETTERS.index(item.references) - turn) % count]
        yield replace(item, id=str(int(item.id) + turn * TURN), choices=choices, references=answer)


def official_prompt(item: Item) -> str:
    """Hint, question and options as VLMEvalKit writes them."""
    hint = f"Hint: {item.fields['hint']}\n" if item.fields["hint"] else ""
    asked = "Please select the correct answer from the options above. \n"
    return f"{hint}Question: {item.question}\nOptions:\n{options_of(item)}\n{asked}"


def lmms_prompt(item: Item) -> str:
    """Hint, question and options as lmms-eval writes them."""
    hint = f"{item.fields['hint']} " if item.fields["hint"] else ""
    asked = "Answer with the option's letter from the given choices directly."
    return f"{hint}{item.question} There are several options:\n{options_of(item)}\n\n{asked}"


def circular(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The share of questions that are right in every order, and of those that are right in their own order.

    A question one of whose orders could not be answered counts only if another order is wrong.
    """
    known = [(item, right) for item, right in zip(items, is_right(items, answers), strict=True) if item.references]
    orders: dict[str, list[tuple[Item, float]]] = {}
    for item, right in known:
        orders.setdefault(item.fields["unit"], []).append((item, right))
    hits: dict[str, float] = {}
    for unit, found in orders.items():
        if not all(right for _, right in found) or len(found) == len(found[0][0].choices):
            hits[unit] = min(right for _, right in found)
    own = {unit: right for unit, found in orders.items() for item, right in found if int(item.id) < TURN}
    kinds = {unit: found[0][0].fields for unit, found in orders.items()}
    return [
        _shares("circular", hits, [kinds[unit]["type"] for unit in hits]),
        _shares("own order", own, [kinds[unit]["type"] for unit in own]),
        _shares("circular by category", hits, [kinds[unit]["category"] for unit in hits]),
    ] if known else []  # fmt: skip


def _shares(label: str, values: Mapping[str, float], groups: Sequence[str | None]) -> Metric:
    rows = np.asarray(list(values.values()), dtype=np.float64).reshape(-1, 1)
    return Metric(label, list(values), rows, groups=groups)


def submission(items: Sequence[Item], outputs: Sequence[Answer]) -> tuple[str, str]:
    """The table that the server of MMBench reads (saved as xlsx): every row with its prediction, without images."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(["index", "question", "hint", *LETTERS[:4], "category", "l2-category", "prediction"])
    for item, output in zip(items, outputs, strict=True):
        options = [*item.choices, "", "", "", ""][:4]
        kinds = [item.fields["category"] or "", item.fields["type"] or ""]
        writer.writerow([item.id, item.question, item.fields["hint"], *options, *kinds, str(output)])
    return "mmbench_submission.tsv", file.getvalue()
