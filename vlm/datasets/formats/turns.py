"""Turns of a dialogue as files have them: spellings of roles, and placeholders for images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from vlm.common.errors import DataError
from vlm.common.types import Image, Message, Part, Role, Video
from vlm.datasets.base import message

ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "model": "assistant", **{r: r for r in get_args(Role)}}
"""Names of speakers in published files."""

MEDIA_PLACEHOLDER = re.compile(r"\n?<(?:image|video)>\n?")
Medium = Image | Video


def read_turns(found: Any, where: str) -> list[tuple[Role, str]]:
    """(role, text) of ``{role, content}`` or ``{from, value}`` objects; content may be a list of typed parts.

    Raises DataError: not a list of turns, an unknown speaker, or a turn without text.
    """
    if not isinstance(found, list) or not found:
        kind = "an empty list" if found == [] else type(found).__name__
        raise DataError(
            f"{where}: conversations must be a list with at least one turn, found {kind}",
            fix="correct the record or the column that build_info names, or remove the record",
        )
    return [_turn(turn, f"{where}: turn {n}") for n, turn in enumerate(found, start=1)]


def check_order(turns: Sequence[tuple[Role, str]], where: str) -> None:
    """Raises DataError unless user and assistant alternate after at most one system text, and answers have text."""
    spoken = [role for role, _ in turns if role != "system"]
    expected = ["user", "assistant"] * len(spoken)
    for number, (role, text) in enumerate(turns, start=1):
        if role == "assistant" and not text.strip():
            raise DataError(f"{where}: turn {number}: the answer is empty", fix="remove the record")
    if any(role == "system" for role, _ in turns[1:]):
        raise DataError(
            f"{where}: a system text after the first turn", fix="move it to the front, or remove the record"
        )
    if spoken != expected[: len(spoken)]:
        raise DataError(
            f"{where}: turns must alternate user, assistant, found {', '.join(spoken)}",
            fix="merge neighbouring turns of one speaker, or remove the record",
        )


def attach_media(
    turns: Sequence[tuple[Role, str]], media: Sequence[Medium], where: str, first: bool = True
) -> list[Message]:
    """Messages with the k-th medium at the k-th ``<image>`` (or ``<video>``) placeholder.

    Without any placeholder all media come before the first turn of the user.

    Args:
        turns: (role, text) of a whole dialogue.
        media: its images and videos.
        where: what to call the record in an error.
        first: put the media of a turn before its text, wherever the placeholders are (as LLaVA's corpora are read).

    Raises:
        DataError: the numbers of placeholders and media differ.
    """
    placeholders = sum(len(MEDIA_PLACEHOLDER.findall(text)) for _, text in turns)
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
        raise DataError(f"{where}: unknown speaker {speaker!r} (known: {', '.join(ROLES)})", fix="rename the speaker")
    key = next((k for k in ("value", "content") if k in turn), None)
    if key is None:
        has = ", ".join(sorted(map(str, turn)))
        raise DataError(f"{where}: no field 'value' or 'content' (it has {has})", fix="name the text content or value")
    declared = "" if turn[key] is None else turn[key]
    return role, "".join(_piece(p, where) for p in declared) if isinstance(declared, list) else str(declared)


def _piece(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return str(part.get("text", ""))
    if kind in ("image", "image_url", "video"):
        return "<image>"
    raise DataError(f"{where}: a part of type {kind!r} (known: text, image, image_url, video)")


def _message(role: Role, text: str, left: Iterator[Medium], first: bool) -> Message:
    pieces = MEDIA_PLACEHOLDER.split(text)
    media = [next(left) for _ in pieces[1:]]
    if first:
        rest = "".join(pieces)
        rest = rest.strip() if media else rest
        return message(role, *media, *([rest] if rest else []))
    parts: list[str | Part] = [pieces[0]]
    for medium, following in zip(media, pieces[1:], strict=True):
        parts += [medium, following]
    return message(role, *(p for p in parts if p != ""))
