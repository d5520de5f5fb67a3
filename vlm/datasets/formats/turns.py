"""Turns of a dialogue as files have them: spellings of roles, and placeholders for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from vlm.common.errors import DataError
from vlm.common.types import Role

ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "model": "assistant", **{r: r for r in get_args(Role)}}
"""Names of speakers in published files."""

_MEDIA_PARTS = {"image": "<image>", "image_url": "<image>", "video": "<video>", "video_url": "<video>"}
"""Type of a part that is not text -> its placeholder."""


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


def inline_media(found: Any, kind: str) -> list[Any]:
    """The values of the typed parts of that kind (image, video), in order: ``{"type": "image", "image": "1.jpg"}``.

    ``image_url`` holds the value itself or ``{"url": ...}``. Parts without a value are placeholders only.
    """
    turns = [turn for turn in found if isinstance(turn, Mapping)] if isinstance(found, list) else []
    contents = [content for turn in turns for content in turn.values() if isinstance(content, list)]
    parts = [part for content in contents for part in content if isinstance(part, Mapping)]
    values = [p.get(key) for p in parts for key in (kind, f"{kind}_url") if p.get("type") == key]
    named = [value.get("url") if isinstance(value, Mapping) and "url" in value else value for value in values]
    return [value for value in named if value is not None]


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
    content = turn[key]
    if isinstance(content, list):
        return role, "".join(_piece(p, where) for p in content)
    if isinstance(content, bool) or not isinstance(content, str | int | float):
        found = "null" if content is None else type(content).__name__
        raise DataError(f"{where}: the {key} is {found}, expected a text", fix="correct or remove the record")
    return role, str(content)


def _piece(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in _MEDIA_PARTS:
        return _MEDIA_PARTS[kind]
    known = ", ".join(["text", *_MEDIA_PARTS])
    raise DataError(f"{where}: a part of type {kind!r} (known: {known}, each with its value)")
