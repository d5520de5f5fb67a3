"""MME: two questions about each image, one with yes and one with no as the answer, in fourteen categories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.text import read_text
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.rules import is_right
from vlm.tasks.scoring.statistics import Metric
from vlm.tasks.scoring.yes_no import by_set

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
IMAGES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")
ASKED = " Please answer yes or no."
"""How every question ends."""


@register_benchmark("mme")
class Mme(StandardBenchmark):
    """MME: perception and cognition by pairs of questions."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``CATEGORY/NAME.txt`` (or in a folder of it) with two lines ``question TAB answer`` beside ``NAME.jpg``."""
        if not files.annotations.is_dir():
            raise DataError(f"{files.annotations}: MME is a folder", fix="give the one with a folder per category")
        for category in (*PERCEPTION, *COGNITION):
            texts = sorted((files.annotations / category).glob("**/*.txt"))
            for file in texts:
                yield from _pair(files, category, file)


def _pair(files: Files, category: str, file: Path) -> Iterator[Item]:
    files.used.append(file)
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    if len(lines) != 2:
        raise DataError(f"{file}: {len(lines)} questions, expected are two", fix="give the original file")
    image = _image(files, category, file)
    for number, line in enumerate(lines, start=1):
        question, tab, answer = line.partition("\t")
        if not tab or answer.strip().lower() not in ("yes", "no"):
            raise DataError(f"{file}:{number}: {line!r:.80}", fix="expected is a question, a tab, and Yes or No")
        fields = {"category": category, "unit": f"{category}/{image.name}"}
        media = (files.image(str(image)),)
        yield Item(f"{category}/{image.name}/{number}", question, media, answer.strip().lower(), fields, ("yes", "no"))


def _image(files: Files, category: str, file: Path) -> Path:
    """The image of a text file: beside it, or anywhere in the category's folder of the media."""
    folder = files.folder().absolute() / category
    beside = [folder, folder / "images", file.parent.absolute(), file.parent.parent.absolute() / "images"]
    found = [place / (file.stem + ending) for place in beside for ending in IMAGES]
    return next((path for path in found if path.exists()), found[0])


def first_letters(output: str, item: Item) -> str | None:
    """``yes`` or ``no`` if the first four characters have it, in this order; else nothing is read."""
    start = output.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else None


def first_letters_stripped(output: str, item: Item) -> str | None:
    """As :func:`first_letters`, without space around the answer and full stops in it; ``y`` and ``n`` count as well."""
    text = output.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or first_letters(text, item)


def brief_question(item: Item) -> str:
    """The question as lmms-eval asks it."""
    return f"{item.question.strip().replace(ASKED, '')}\nAnswer the question using a single word or phrase."


def scores(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """Perception (of 2,000) and cognition (of 800), with the score (of 200) of each category, and the accuracies.

    A row is an image: right answers, answers, whether both are right, whether both were given, number of the category.
    An image one of whose questions could not be answered counts for the accuracy, and not for accuracy+.
    """
    numbers = {name: k for k, name in enumerate((*PERCEPTION, *COGNITION))}
    pairs: dict[str, list[float]] = {}
    for item, right in zip(items, is_right(items, answers), strict=True):
        row = pairs.setdefault(item.fields["unit"], [0.0, 0.0, 0.0, 0.0, numbers[item.fields["category"]]])
        row[0], row[1] = row[0] + right, row[1] + 1
    for row in pairs.values():
        row[2], row[3] = float(row[0] == 2), float(row[1] == 2)
    places = {unit.split("/")[0] for unit in pairs}
    result = []
    for label, own in (("perception", PERCEPTION), ("cognition", COGNITION), ("total", (*PERCEPTION, *COGNITION))):
        if places & set(own):
            units = [unit for unit in pairs if unit.split("/")[0] in own]
            rows = np.asarray([pairs[unit] for unit in units])
            rows = by_set(rows[:, 4].astype(np.intp), *rows[:, :4].T)
            groups = [unit.split("/")[0] for unit in units] if label != "total" else ()
            result.append(Metric(label, units, rows, "mme", groups, unit="number"))
    rows = np.asarray([pairs[unit] for unit in pairs])
    return [
        *result,
        Metric("accuracy", list(pairs), rows[:, :2], "ratio"),
        Metric("accuracy+", list(pairs), rows[:, 2:4], "ratio"),
    ]
