"""Turns of a dialogue as they stand in files: spellings of roles, and placeholders where images belong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from vlm.common.errors import DataError
from vlm.common.types import Image, Message, Part, Role, Video
from vlm.datasets.base import message

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
"""Spellings of a speaker in circulation."""

PLACEHOLDER = re.compile(r"\n?<(?:image|video)>\n?")
Medium = Image | Video


def read_turns(found: Any, where: str) -> list[tuple[Role, str]]:
    """(role, text) of ``{role, content}`` or ``{from, value}`` objects; content may be a list of typed parts.

    Raises:
        DataError: no list of turns, an unknown speaker, a turn without text.
    """
    if not isinstance(found, list) or not found:
        raise DataError(f"{where}: conversations must be a list with at least one turn, found {type(found).__name__}")
    return [_turn(turn, f"{where}: turn {n}") for n, turn in enumerate(found, start=1)]


def check_order(turns: Sequence[tuple[Role, str]], where: str) -> None:
    """Raises DataError unless user and assistant alternate, after at most one system text, and no answer is empty."""
    spoken = [role for role, _ in turns if role != "system"]
    expected = ["user", "assistant"] * len(spoken)
    for number, (role, text) in enumerate(turns, start=1):
        if role == "assistant" and not text.strip():
            raise DataError(f"{where}: turn {number}: the answer is empty", fix="remove the record")
    if any(role == "system" for role, _ in turns[1:]):
        raise DataError(f"{where}: a system text after the first turn")
    if spoken != expected[: len(spoken)]:
        raise DataError(
            f"{where}: turns must alternate user, assistant, found {', '.join(spoken)}",
            fix="merge neighbouring turns of one speaker, or remove the record",
        )


def attach_media(
    turns: Sequence[tuple[Role, str]], media: Sequence[Medium], where: str, first: bool = True
) -> list[Message]:
    """Messages with the k-th medium at the k-th ``<image>`` (or ``<video>``) placeholder.

    Without any placeholder all media stand before the first turn of the user.

    Args:
        turns: (role, text) of a whole dialogue.
        media: its images and videos.
        where: what to call the record in an error.
        first: within a turn media stand before the text, wherever its placeholders are (the published form).

    Raises:
        DataError: placeholders and media differ in number.
    """
    placeholders = sum(len(PLACEHOLDER.findall(text)) for _, text in turns)
    if placeholders == 0:
        at = next((i for i, (role, _) in enumerate(turns) if role == "user"), 0)
        return [
            message(role, *(media if i == at else ()), *([text] if text else []))
            for i, (role, text) in enumerate(turns)
        ]
    if placeholders != len(media):
        one = "write one placeholder per image, or none (all images then come first)"
        nothing = "name the field of the images (in a table: build_info.fields.image), or remove the placeholders"
        raise DataError(
            f"{where}: {placeholders} <image> placeholders but {len(media)} images", fix=one if media else nothing
        )
    left = iter(media)
    return [_message(role, text, left, first) for role, text in turns]


def _turn(turn: Any, where: str) -> tuple[Role, str]:
    if not isinstance(turn, dict):
        raise DataError(f"{where}: found {type(turn).__name__}, expected an object with role and content")
    speaker = turn.get("from", turn.get("role"))
    role = ROLES.get(str(speaker))
    if role is None:
        raise DataError(f"{where}: unknown speaker {speaker!r} (known: {', '.join(ROLES)})")
    key = next((k for k in ("value", "content") if k in turn), None)
    if key is None:
        raise DataError(f"{where}: no field 'value' or 'content' (it has {', '.join(sorted(turn))})")
    declared = "" if turn[key] is None else turn[key]
    return role, "".join(_piece(p, where) for p in declared) if isinstance(declared, list) else str(declared)


def _piece(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return str(part.get("text", ""))
    if kind in ("image", "image_url", "video"):
        return "<image>"
    raise DataError(f"{where}: a part of type {kind!r} (known: text, image, video)")


def _message(role: Role, text: str, left: Iterator[Medium], first: bool) -> Message:
    pieces = PLACEHOLDER.split(text)
    media = [next(left) for _ in pieces[1:]]
    if first:
        rest = "".join(pieces)
        rest = rest.strip() if media else rest
        return message(role, *media, *([rest] if rest else []))
    parts: list[str | Part] = [pieces[0]]
    for medium, following in zip(media, pieces[1:], strict=True):
        parts += [medium, following]
    return message(role, *(p for p in parts if p != ""))
