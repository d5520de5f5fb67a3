"""ScienceQA: questions of school science, with or without an image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.common.types import Image
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.choice.letters import numbered as numbered
from vlm.tasks.benchmarks.standard.items import Files, Item
from vlm.tasks.benchmarks.standard.places import first_there
from vlm.tasks.benchmarks.standard.rules import LETTERS, is_right, options_of
from vlm.tasks.scoring.statistics import Metric, per_item

DIRECTLY = "Answer with the option's letter from the given choices directly."
MOST = 5
"""Options that LLaVA's script knows."""
SAYS = re.compile(r"The answer is ([A-Z]).")


@register_benchmark("scienceqa")
class ScienceQa(StandardBenchmark):
    """ScienceQA, all questions."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """``problems.json`` (id -> problem) and ``pid_splits.json`` (split -> ids); images ``SPLIT/ID/image.png``."""
        problems, split = files.json("problems.json"), files.split or "train"
        for name in files.json("pid_splits.json")[split]:
            if name not in problems:
                raise DataError(f"{files.annotations}: problem {name} of {split} is not there", fix="see problems.json")
            yield _item(files, str(name), problems[name])


@register_benchmark("scienceqa_img")
class ScienceQaImg(ScienceQa):
    """ScienceQA-IMG, the questions with an image."""

    yaml = "scienceqa"

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """See :meth:`ScienceQa.read`."""
        yield from (item for item in ScienceQa.read(files) if item.media)


def _item(files: Files, name: str, problem: Mapping[str, Any]) -> Item:
    choices, answer = tuple(problem["choices"]), problem["answer"]
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(f"{files.annotations}: problem {name}: answer {answer!r} of {len(choices)} choices")
    media: tuple[Image, ...] = ()
    if problem.get("image"):
        places = [f"{problem['split']}/{name}/{problem['image']}", f"{name}/{problem['image']}"]
        media = (files.image(first_there(files, places)),)
    fields = {
        "type": problem["subject"],
        "grade": "1-6" if int(str(problem["grade"]).removeprefix("grade")) <= 6 else "7-12",
        "hint": str(problem.get("hint") or ""),
    }
    return Item(name, problem["question"], media, LETTERS[answer], fields, choices)


def official_prompt(item: Item) -> str:
    """Context, question and options on a line each, as LLaVA's conversion (CQM) writes them."""
    options = " ".join(f"({LETTERS[k]}) {text}" for k, text in enumerate(item.choices))
    text = f"Context: {item.fields['hint'].strip() or 'N/A'}\nQuestion: {item.question}\nOptions: {options}\n"
    return text.replace("  ", " ").strip() + f"\n{DIRECTLY}"


def lmms_prompt(item: Item) -> str:
    """Context if there is one, question, and an option per line."""
    context = f"Context: {item.fields['hint']}\n" if item.fields["hint"] else ""
    return f"{context}{item.question}\n{options_of(item)}\n{DIRECTLY}"


def official_answer(output: str, item: Item) -> str | None:
    """A letter alone, ``A. `` in front, or the only ``The answer is A.``, if an option has it."""
    first, found = output[:1], SAYS.findall(output)
    if first and first in LETTERS[:MOST] and output[1:3] in ("", ". ") and len(output) != 2:
        read = first
    else:
        read = found[0] if len(found) == 1 else ""
    return read if read and read in LETTERS[: min(len(item.choices), MOST)] else None


def lmms_answer(output: str, item: Item) -> str | None:
    """A letter alone, in either case, or a capital letter with a full stop in front."""
    text = output.strip()
    read = text.upper() if len(text) == 1 else text[:1] if text[:1].isupper() and text[1:2] == "." else ""
    return read if read and read in LETTERS[: len(item.choices)] else None


def accuracy(items: Sequence[Item], answers: Sequence[str]) -> list[Metric]:
    """The share of right answers, by subject and grade, and of questions with a text, an image, or neither."""
    shares, names = is_right(items, answers), [item.id for item in items]
    result = [
        per_item("accuracy", names, shares, groups=[item.fields["type"] for item in items]),
        per_item("accuracy by grade", names, shares, groups=[item.fields["grade"] for item in items]),
    ]
    contexts = {
        "with a text": [bool(item.fields["hint"]) for item in items],
        "with an image": [bool(item.media) for item in items],
        "without context": [not item.fields["hint"] and not item.media for item in items],
    }
    for label, has in contexts.items():
        own = [k for k, value in enumerate(has) if value]
        if own:
            result.append(per_item(label, [names[k] for k in own], [shares[k] for k in own]))
    return result
