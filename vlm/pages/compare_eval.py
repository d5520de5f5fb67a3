"""Two evaluations over the same questions as one page: differences with intervals, then the questions won and lost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.datasets.media_field import VIDEO_SUFFIXES
from vlm.pages.bars import percent
from vlm.pages.parts import image_uri, render
from vlm.processors.video.read import first_frame

SIDE = 320
"""Longest side of an image in pixels."""
MOST_IMAGES = 3
"""Images that are shown of one question."""
LONGEST = 4000
"""Characters of a text that are shown."""
KINDS = ("b wins", "b loses")


@dataclass(frozen=True)
class Change:
    """A row of the comparison: both numbers, their difference and what to think of it, as text; ``drawn`` as numbers.

    ``drawn`` is the difference, and the bounds of its interval; ``reach`` the number at either end of the axis.
    """

    label: str
    count: int
    first: str
    second: str
    change: str
    bounds: str
    p: str
    verdict: str
    winner: str
    drawn: tuple[float, float, float]
    reach: float = 1.0

    @property
    def place(self) -> dict[str, str]:
        """Percent of the drawing: start and width of the bar, ends of the whisker; zero is in the middle."""
        value, low, high = self.drawn
        at = [percent(v + self.reach, 2 * self.reach) for v in (min(value, 0.0), value, low, high)]
        return {"x": at[0], "width": percent(abs(value), 2 * self.reach), "low": at[2], "high": at[3]}


@dataclass(frozen=True)
class Section:
    """One dataset: its name, what both runs share (facts), a sentence, rows, and counts of questions."""

    name: str
    facts: Mapping[str, str]
    sentence: str
    metrics: Sequence[Change]
    groups: Sequence[Change]
    counts: tuple[int, int, int]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Question:
    """One question that changed: ``kind`` is one of ``KINDS``; ``media`` are paths that an answers file names."""

    key: str
    kind: str
    text: str
    reference: str
    answers: Sequence[tuple[str, str]]
    group: str = ""
    media: Sequence[str] = ()


@dataclass
class Shown:
    """A page, and the images of its questions that were not found under the folder of media."""

    text: str = ""
    missing: list[str] = field(default_factory=list)


def page(
    names: tuple[str, str],
    runs: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    questions: Sequence[Question],
    media_root: str = "",
) -> Shown:
    """The page.

    Args:
        names: of the two runs.
        runs: facts about them (name, value).
        sections: one per dataset.
        questions: those to show.
        media_root: the only folder that images are read from; empty: none are shown.
    """
    shown = Shown()
    cards = []
    for question in questions:
        images = [_image(path, media_root, shown) for path in question.media[:MOST_IMAGES]]
        cards.append({"question": question, "images": images})
    shown.text = render(
        "compare_eval.html",
        title=f"{names[0]} and {names[1]} on the same questions",
        kind="wide",
        script="compare.js" if cards else "",
        names=names,
        runs=dict(runs),
        sections=sections,
        cards=cards,
        kinds=[kind for kind in KINDS if any(q.kind == kind for q in questions)],
        media_root=media_root,
    )
    return shown


def _image(path: str, root: str, shown: Shown) -> dict[str, str]:
    uri = media_uri(path, root)
    shown.missing += [] if uri else [path]
    return {"name": "/".join(path.replace("\\", "/").split("/")[-2:])[-120:], "uri": uri}


def media_uri(path: str, root: str, side: int = SIDE) -> str:
    """An image, or the first frame of a video, that somebody's answers name, as a ``data:`` address; empty: none.

    Args:
        path: as the answers name it, see :func:`inside`.
        root: the only folder that is read; empty: none is.
        side: longest side in pixels.
    """
    file = inside(path, root) if root else None
    if file is None:
        return ""
    try:
        return image_uri(first_frame(str(file)) if file.suffix.lower() in VIDEO_SUFFIXES else file, side)
    except DataError:
        return ""


def inside(path: str, root: str) -> Path | None:
    """The file below ``root`` that a path of somebody's answers names, or the longest end of it; None: none is there.

    Nothing outside ``root`` is found, whatever the path says.
    """
    base = Path(root).resolve()
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    if "\0" in path or ".." in parts or len(path) > LONGEST:
        return None
    for start in range(len(parts)):
        file = base.joinpath(*parts[start:])
        try:
            real = file.resolve()
            if real.is_file() and os.path.commonpath([base, real]) == str(base):
                return real
        except (OSError, ValueError):
            return None
    return None


def question_of(key: str, kind: str, rows: Sequence[tuple[str, Mapping[str, Any]]], group: str = "") -> Question:
    """A question from the lines of two answers files, which may hold anything: (name of the run, line)."""
    first = rows[0][1]
    media = first.get("media")
    paths = [path for path in media if isinstance(path, str)] if isinstance(media, list) else []
    answers = [
        (name, _text(row.get("answer")) or (f"error: {_text(row['error'])}" if row.get("error") else ""))
        for name, row in rows
    ]
    return Question(key, kind, _text(first.get("question")), _text(first.get("reference")), answers, group, paths)


def _text(value: Any) -> str:
    return "" if value is None else str(value)[:LONGEST]
