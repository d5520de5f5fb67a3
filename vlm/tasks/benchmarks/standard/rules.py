"""Functions that protocols of several benchmarks name: how an answer is read, and how answers are scored."""

from __future__ import annotations

from collections.abc import Sequence

from vlm.common.errors import DataError
from vlm.tasks.benchmarks.standard.items import Item
from vlm.tasks.scoring.statistics import Metric, per_item

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def stripped(output: str, item: Item) -> str:
    """The whole answer without white space around it."""
    return output.strip()


def as_written(output: str, item: Item) -> str:
    """The answer as it is, for scripts that compare to the letter or clean it themselves."""
    return output


def plain(output: str, item: Item) -> str:
    """The answer in lower case, without a final period."""
    return output.strip().lower().removesuffix(".")


def yes_or_no(output: str, item: Item) -> str | None:
    """The whole answer, if it is yes or no in any case."""
    word = output.lower().strip()
    return word if word in ("yes", "no") else None


def start_of(output: str) -> str:
    """The first word in lower case; commas and full stops are space."""
    return next(iter(output.lower().replace(",", " ").replace(".", " ").split()), "")


def options_of(item: Item) -> str:
    """The choices of an item, one on each line: ``A. a dog``."""
    return "\n".join(f"{LETTERS[k]}. {choice}" for k, choice in enumerate(item.choices))


def exact(items: Sequence[Item], answers: Sequence[str]) -> Metric:
    """The share of answers that are equal to the reference, to the letter."""
    groups = [item.fields.get("type") for item in items]
    return per_item("accuracy", [item.id for item in items], is_right(items, answers), groups=groups)


def is_right(items: Sequence[Item], answers: Sequence[str]) -> list[float]:
    """Whether each answer is equal to the reference, to the letter."""
    return [float(answer == item.references) for item, answer in zip(items, answers, strict=True)]


def letter(output: str, item: Item) -> str | None:
    """The letter of an option, if the whole answer is one."""
    text = output.strip()
    return text if text in LETTERS[: len(item.choices)] and len(text) == 1 else None


def example_answer(item: Item) -> str:
    """What an example before a question answers: the reference, or the most frequent of several."""
    found = item.references
    if isinstance(found, str):
        return found
    if isinstance(found, Sequence) and found and all(isinstance(text, str) for text in found):
        return str(max(found, key=found.count))
    raise DataError(f"{item.id}: no reference answer that an example could show", fix="ask without few-shot examples")
