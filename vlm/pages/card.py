"""The card of an evaluation: which model was asked what, how, and with what result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vlm.pages.parts import NOTHING, AnswerCard, answer_cards, document, fact_cards, facts, table


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
    sections = "\n".join(_section(dataset) for dataset in datasets)
    return document(title, f"<header><h1>{escape(title)}</h1></header>{fact_cards(groups)}\n{sections}")


def _section(dataset: DatasetCard) -> str:
    note = f'<p class="sub">{escape(dataset.note)}</p>' if dataset.note else ""
    scores = f'<div class="card">{table(dataset.head, dataset.rows)}{note}</div>' if dataset.rows else NOTHING
    examples = "".join(f"<h3>{escape(k)}</h3>{answer_cards(v)}" for k, v in dataset.examples.items())
    about = f'<div class="card">{facts(dataset.facts)}</div>'
    return f"<section><h2>{escape(dataset.name)}</h2>{about}<h3>Scores</h3>{scores}{examples}</section>"
