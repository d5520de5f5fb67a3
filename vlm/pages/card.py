"""The card of an evaluation: which model was asked what, how, and with what result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm.pages.parts import AnswerCard, render


@dataclass(frozen=True)
class DatasetCard:
    """One dataset: facts about it, its table of scores, and examples."""

    name: str
    facts: Mapping[str, Any]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str
    examples: Mapping[str, Sequence[AnswerCard]]  # heading -> cards


def page(name: str, groups: Mapping[str, Mapping[str, Any]], datasets: Sequence[DatasetCard]) -> str:
    """The card as HTML.

    Args:
        name: of the evaluation.
        groups: facts about model, settings and scoring, by heading.
        datasets: in order.

    Raises:
        DataError: an image cannot be read.
    """
    title = "Evaluation" if name == "evaluation" else f"Evaluation {name}"
    return render("card.html", title=title, groups=groups, datasets=datasets)
