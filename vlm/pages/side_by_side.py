"""A conversation with one or several models as a file: HTML to read, JSON in the form of OpenAI's messages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError
from vlm.common.types import Image, Video
from vlm.pages.conversation import numbers
from vlm.pages.parts import image_uri, render
from vlm.processors.data_url import image_url
from vlm.processors.video.read import first_frame

if TYPE_CHECKING:
    from vlm.inference.conversation.record import Record

SIDE = 768
"""Longest side of an image in pixels; a larger one is scaled down."""
EXACT = 2**20
"""Bytes of an image that is written as it is."""


@dataclass(frozen=True)
class Asked:
    """A question about files, and what each model answered: name -> text and, if known, its numbers."""

    text: str
    files: Sequence[Image | Video] = ()
    answers: Mapping[str, tuple[str, Record | None]] = dataclasses.field(default_factory=dict)


def page(names: Sequence[str], turns: Sequence[Asked]) -> str:
    """A self-contained page, the models' answers next to each other."""
    shown = [
        {
            "text": turn.text,
            "files": [(_name(medium), _uri(medium)) for medium in turn.files],
            "answers": [
                (name, turn.answers[name][0], numbers(turn.answers[name][1])) for name in names if name in turn.answers
            ],
        }
        for turn in turns
    ]
    return render("side_by_side.html", title="Conversation with " + ", ".join(names), turns=shown)


def json_text(names: Sequence[str], turns: Sequence[Asked]) -> str:
    """One mapping with ``model``, ``messages`` and ``answers`` (numbers), or a list ``conversations`` of these.

    Images are ``data:`` addresses, of their own bytes up to ``EXACT`` and scaled down above. A video, and an image
    whose file is gone, is named only.
    """
    talks = [_talk(name, [turn for turn in turns if name in turn.answers]) for name in names]
    found = talks[0] if len(talks) == 1 else {"conversations": talks}
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def _talk(name: str, turns: Sequence[Asked]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    records = []
    for turn in turns:
        text, record = turn.answers[name]
        parts = [*map(_part, turn.files), {"type": "text", "text": turn.text}]
        messages.append({"role": "user", "content": parts if turn.files else turn.text})
        messages.append({"role": "assistant", "content": text})
        records.append(record and dataclasses.asdict(record))
    return {"model": name, "messages": messages, "answers": records}


def _part(medium: Image | Video) -> dict[str, Any]:
    uri = _exact(medium) if isinstance(medium, Image) else None
    if uri is None:
        return {"type": "text", "text": f"[{_name(medium)}]"}
    return {"type": "image_url", "image_url": {"url": uri}}


def _exact(medium: Image) -> str | None:
    """An image with the bytes of its file if these are few, so that a model is given the same pixels again."""
    try:
        return image_url(medium.source) if Path(medium.source).stat().st_size <= EXACT else _uri(medium)
    except (DataError, OSError):
        return None


def _uri(medium: Image | Video) -> str | None:
    """An image, or the first frame of a video, as a ``data:`` address; None: it is no longer there."""
    try:
        return image_uri(first_frame(medium.source) if isinstance(medium, Video) else medium.source, SIDE)
    except DataError:
        return None


def _name(medium: Image | Video) -> str:
    kind = type(medium).__name__.lower()
    return f"{kind} {Path(medium.source).name}" if isinstance(medium.source, str) else kind
