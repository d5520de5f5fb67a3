"""MMMU: questions of thirty college subjects, with several images at places in the text, some of them open."""

from __future__ import annotations

import ast
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.types import Image
from vlm.datasets.formats.table.arrow import from_parquet
from vlm.tasks.answers import Answer
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.choice.letters import ANYWHERE, last_named
from vlm.tasks.benchmarks.standard.choice.open_answers import agrees, readings
from vlm.tasks.benchmarks.standard.items import PLACE, Files, Item
from vlm.tasks.benchmarks.standard.rules import LETTERS, options_of
from vlm.tasks.scoring.statistics import Metric, per_item

DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics", "Energy_and_Power",
        "Materials", "Mechanical_Engineering",
    ),
}  # fmt: skip
OF_SUBJECT = {subject: name for name, subjects in DISCIPLINES.items() for subject in subjects}
ANSWERS = "answer_dict_val.json"
MENTION = re.compile(r"<image (\d+)>")
MULTIPLE = "multiple-choice"
SEED = 42
"""Of the guesses of the official script."""
DIRECTLY = "Answer with the option's letter from the given choices directly."
BRIEFLY = "Answer the question using a single word or phrase."


@register_benchmark("mmmu")
class Mmmu(StandardBenchmark):
    """MMMU: multiple choice and open questions that need knowledge of a subject."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Parquet files of the subjects, or records in JSON; answers of ``answer_dict_val.json`` where there is one."""
        known: dict[str, Any] = {}
        if files.annotations.is_dir() and (files.annotations / ANSWERS).is_file():
            known = files.json(ANSWERS)
        for record in _records(files):
            yield _item(files, record, known.get(str(record["id"]), {}).get("ground_truth"))


def _records(files: Files) -> Iterator[Mapping[str, Any]]:
    found = [files.annotations]
    if files.annotations.is_dir():
        found = sorted(files.annotations.glob(f"**/{files.split}-*.parquet"), key=str)
    if not found or found[0].suffix != ".parquet":
        yield from files.json_lines(f"{files.split}.json", f"{files.split}.jsonl", f"mmmu_{files.split}.json")
        return
    for file in found:
        files.used.append(file)
        yield from from_parquet(file)


def _item(files: Files, record: Mapping[str, Any], answer: Any) -> Item:
    name, question, kind = str(record["id"]), str(record["question"]), str(record["question_type"])
    where = f"{files.annotations}: {name}"
    options = _listed(record.get("options") or [], where)
    answer = _listed(record.get("answer"), where, single=True) if answer is None else answer
    if kind == MULTIPLE and answer not in (None, "?", *LETTERS[: len(options)]):
        raise DataError(f"{where}: answer {answer!r} of {len(options)} options", fix="give the original file")
    shown = " ".join([question, *options])
    numbers = list(dict.fromkeys(MENTION.findall(shown))) or ["1"]
    media = tuple(_image(files, record, number, where) for number in numbers if record.get(f"image_{number}"))
    subject = "_".join(name.split("_")[1:-1])
    fields = {"type": OF_SUBJECT.get(subject, "other"), "category": subject, "kind": kind}
    return Item(name, question, media, None if answer == "?" else answer, fields, tuple(options))


def _image(files: Files, record: Mapping[str, Any], number: str, where: str) -> Image:
    return files.image(record[f"image_{number}"], f"{where}: image_{number}")


def _listed(value: Any, where: str, single: bool = False) -> Any:
    """A list that the files write as text; with ``single`` another text stays as it is."""
    if isinstance(value, str) and (not single or value.lstrip().startswith("[")):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            if not single:
                raise DataError(f"{where}: {value!r:.60} is not a list", fix="give the original file") from None
    return value


def official_prompt(item: Item) -> str:
    """The question with its options, images at their places: an image is shown where it is named first."""
    options = "".join(f"({LETTERS[k]}) {text}\n" for k, text in enumerate(item.choices))
    text = f"{item.question}\n{options}\n{DIRECTLY}" if _chooses(item) else f"{item.question}\n{BRIEFLY}"
    named = set[str]()

    def place(found: re.Match[str]) -> str:
        first = found[1] not in named
        named.add(found[1])
        return PLACE if first else f"image {found[1]}"

    return MENTION.sub(place, text)


def lmms_prompt(item: Item) -> str:
    """The question with its options; images come first, and the text keeps their numbers."""
    if _chooses(item):
        return f"{item.question}\n{options_of(item)}\n\n{DIRECTLY}"
    return f"{item.question}\n\n{BRIEFLY}"


def _chooses(item: Item) -> bool:
    return item.fields["kind"] == MULTIPLE


def official_answer(output: str, item: Item) -> str | None:
    """The letter that an answer names; an open answer whole."""
    return last_named(output, item.choices, (" {} ",)) if _chooses(item) else output


def lmms_answer(output: str, item: Item) -> str | None:
    """As :func:`official_answer`, with a letter before a space or a full stop counting wherever it is."""
    return last_named(output, item.choices, ANYWHERE) if _chooses(item) else output


def is_right(items: Sequence[Item], answers: Sequence[str]) -> list[float]:
    """Whether each answer is right; where no letter can be read, one is drawn as the official script draws."""
    several = [item.references if isinstance(item.references, list) else [item.references] for item in items]
    return _right(items, answers, several)


def lmms_right(items: Sequence[Item], answers: Sequence[str]) -> list[float]:
    """As :func:`is_right`, with several references of an open question as one text, which lmms-eval compares with."""
    return _right(items, answers, [[str(item.references)] for item in items])


def _right(items: Sequence[Item], answers: Sequence[str], references: Sequence[Sequence[Any]]) -> list[float]:
    guess, result = random.Random(SEED), []
    for item, answer, known in zip(items, answers, references, strict=True):
        if _chooses(item):
            letter = answer or guess.choice(LETTERS[: len(item.choices)])
            result.append(float(letter in known))
        else:
            result.append(float(agrees(readings(answer), known)))
    return result


def accuracy(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The share of right answers, by discipline and by subject; nothing for a split without answers."""
    return _accuracy(items, is_right(items, answers))


def lmms_accuracy(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """As :func:`accuracy`, by :func:`lmms_right`."""
    return _accuracy(items, lmms_right(items, answers))


def _accuracy(items: Sequence[Item], shares: Sequence[float]) -> list[Metric]:
    known = [k for k, item in enumerate(items) if item.references is not None]
    names, values = [items[k].id for k in known], [shares[k] for k in known]
    fields = [items[k].fields for k in known]
    return [
        per_item("accuracy", names, values, groups=[f["type"] for f in fields]),
        per_item("accuracy by subject", names, values, groups=[f["category"] for f in fields]),
    ] if known else []  # fmt: skip


def submission(items: Sequence[Item], outputs: Sequence[Answer]) -> tuple[str, str]:
    """The file of predictions: id -> letter or open answer."""
    found = {item.id: official_answer(str(o), item) or "" for item, o in zip(items, outputs, strict=True)}
    return "mmmu_submission.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n"
