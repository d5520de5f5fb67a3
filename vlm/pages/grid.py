"""Many images in a grid with short answers below each, for a look at what a model says and where it errs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm.pages.parts import image_uri, render

SIDE = 160
"""Longest side of an image in pixels."""


@dataclass(frozen=True)
class Cell:
    """An image, what the model answered to each question (text, whether it is right), and what it shows."""

    image: Any  # anything that decodes to an image
    answers: Sequence[tuple[str, bool]]
    caption: str = ""


def page(title: str, groups: Sequence[tuple[str, Sequence[Cell]]], about: str = "") -> str:
    """A self-contained page; wrong answers are red and marked with a cross.

    Args:
        title: of the page.
        groups: heading and cells of each part.
        about: what is seen, below the title.

    Raises:
        DataError: an image cannot be read.
    """
    shown = [(heading, [(image_uri(cell.image, SIDE), cell) for cell in cells]) for heading, cells in groups]
    return render("grid.html", title=title, about=about, groups=shown)
