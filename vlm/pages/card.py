"""The card of an evaluation: which model was asked what, how, and with what result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm.pages.parts import render


def page(name: str, groups: Mapping[str, Mapping[str, Any]], datasets: Sequence[Mapping[str, Any]]) -> str:
    """The card as HTML.

    Args:
        name: of the evaluation.
        groups: facts about model, settings and scoring, by heading.
        datasets: of each its ``name``, ``facts``, the ``head`` and ``rows`` of its scores, a ``note`` and ``examples``
            (heading -> :class:`AnswerCard`).

    Raises:
        DataError: an image cannot be read.
    """
    title = "Evaluation" if name == "evaluation" else f"Evaluation {name}"
    return render("card.html", title=title, groups=groups, datasets=datasets)
