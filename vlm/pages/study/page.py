"""``page``: a study as one file that needs no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vlm.pages.parts import render
from vlm.pages.study.strip import Strip

MANY = 24
"""Answers to a question that are shown at once; further ones are folded."""


@dataclass(frozen=True)
class Number:
    """A number of the table: how it is written, what it is sorted by, more about it, and a drawing."""

    text: str
    value: float | None = None
    half: str = ""
    bounds: str = ""
    drawn: Strip | None = None
    style: str = ""
    title: str = ""


@dataclass(frozen=True)
class Level:
    """The value of an axis in a row; ``changed``: not as in the reference."""

    text: str
    changed: bool = False


@dataclass(frozen=True)
class TableRow:
    """A combination.

    Attributes:
        name: for people.
        levels: one per axis.
        score, controls, change, p, verdict: as numbers of the table.
        others, costs: one per further column.
        seeds: how many cells are done.
        reference: whether it is what others are compared with.
        winner: ``better``, ``worse`` or empty.
    """

    name: str
    levels: Sequence[Level]
    score: Number
    controls: Sequence[Number]
    change: Number
    p: Number
    verdict: str
    others: Sequence[Number]
    costs: Sequence[Number]
    seeds: Number
    reference: bool = False
    winner: str = ""


@dataclass(frozen=True)
class Table:
    """Heads and rows."""

    axes: Sequence[str]
    score: str
    controls: Sequence[str]
    compared: bool
    others: Sequence[tuple[str, str]]
    costs: Sequence[tuple[str, str]]
    rows: Sequence[TableRow]
    caption: str = ""


@dataclass(frozen=True)
class EffectLine:
    """A value of an axis: its mean, its effect with interval, how many combinations, and the drawing."""

    label: str
    mean: str
    effect: str
    bounds: str
    count: int
    drawn: Strip


@dataclass(frozen=True)
class Effect:
    """An axis."""

    axis: str
    note: str
    lines: Sequence[EffectLine]


@dataclass(frozen=True)
class Plot:
    """A drawing with its title, a note, and a legend of (CSS class, name)."""

    title: str
    note: str
    svg: Markup
    legend: Sequence[tuple[str, str]] = ()
    more: int = 0


@dataclass(frozen=True)
class Answered:
    """What one combination answered: (text, how often if not always, ``won``, ``worse`` or empty)."""

    name: str
    answers: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Card:
    """A question with its images as addresses."""

    question: str
    reference: str
    images: Sequence[str]
    answers: Sequence[Answered]
    right: str = ""


@dataclass(frozen=True)
class Shown:
    """Everything on the page.

    Attributes:
        title, about: of the study.
        sub: a line about cells and seeds.
        sentence: what the comparisons show.
        tiles: (name, value).
        warnings: what a reader must know first.
        faults: (cell, message) of what failed.
        waiting: (state, combinations) of what is missing.
        table: the combinations.
        effects: of the axes.
        curves, costs: drawings.
        same: costs that all combinations share, in words.
        cards, asked: questions, and the dataset that they are of.
        notes: about them.
        differences: (anchor, name, rows of (key, reference, this one)).
        reading: (heading, text) of how to read it.
    """

    title: str
    about: Sequence[str]
    sub: str
    sentence: str
    tiles: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    faults: Sequence[tuple[str, str]]
    waiting: Sequence[tuple[str, str]]
    table: Table
    effects: Sequence[Effect] = ()
    curves: Sequence[Plot] = ()
    costs: Sequence[Plot] = ()
    same: str = ""
    cards: Sequence[Card] = ()
    asked: str = ""
    notes: Sequence[str] = ()
    reference: str = ""
    differences: Sequence[tuple[str, str, Sequence[tuple[str, str, str]]]] = ()
    reading: Sequence[tuple[str, str]] = ()


def page(shown: Shown) -> str:
    """The page as HTML; all texts are escaped."""
    return render("study.html", title=shown.title, kind="wide", script="study.js", shown=shown, most=MANY)
