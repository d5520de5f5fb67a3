"""Turns of a dialogue as files have them: spellings of roles, and placeholders for images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from vlm.common.errors import DataError
from vlm.common.types import Role
from vlm.datasets.base import parse_json
from vlm.datasets.media_columns import is_missing

ROLES: dict[str, Role] = {"human": "user", "gpt": "assistant", "model": "assistant", **{r: r for r in get_args(Role)}}
"""Names of speakers in published files."""

TOOLS = ("tool", "tool_call", "tool_response", "function", "function_call", "function_response")
TOOL_SPEAKERS = (*TOOLS, "observation", "observations")
"""Names of what is not spoken: calls of tools and what they return."""

_MEDIA_PARTS = {"image": "<image>", "image_url": "<image>", "video": "<video>", "video_url": "<video>"}
"""Type of a part that is not text -> its placeholder."""

_INSIDE = ("url", "path", "base64", "source")
"""Keys of a typed part that hold its image or video, beside one that is named like its type."""


class RefusedError(DataError):
    """A record with something that training cannot represent: calls of tools, answers not to be learned."""


@dataclass(frozen=True)
class Spelling:
    """How a file writes a turn, where :data:`ROLES`, from/role and value/content do not say it."""

    role: str = ""  # key of the speaker
    content: str = ""  # key of the text
    speakers: Mapping[str, Role] = field(default_factory=dict)

    def role_of(self, speaker: Any, where: str) -> Role:
        """Who speaks. Raises DataError: unknown; RefusedError: a tool."""
        role = self.speakers.get(str(speaker)) or ROLES.get(str(speaker))
        if role is None and str(speaker).replace("-", "_") in TOOL_SPEAKERS:
            raise _refused(f"{where}: the speaker is {speaker!r}, and calls of tools are not trained")
        if role is None:
            known = ", ".join([*self.speakers, *ROLES])
            fix = f"rename the speaker, or say who it is: build_info.speakers: {{{speaker}: user}}"
            raise DataError(f"{where}: unknown speaker {speaker!r} (known: {known})", fix=fix)
        return role


PLAIN = Spelling()


def turn_objects(found: Any, where: str) -> list[Any]:
    """The turns of a dialogue as a list of objects; a file may hold it as JSON text, or as an object of equal lists.

    Raises DataError: not a list of turns.
    """
    if isinstance(found, str) and found.lstrip()[:1] == "[":  # a cell of a CSV file
        found = parse_json(found, f"{where}: conversations")
    if isinstance(found, Mapping) and found and all(isinstance(v, list) for v in found.values()):
        count = min(map(len, found.values()))  # how Arrow stores a sequence of objects
        found = [{key: values[k] for key, values in found.items()} for k in range(count)]
    if not isinstance(found, list) or not found:
        kind = "an empty list" if found == [] else type(found).__name__
        raise DataError(
            f"{where}: conversations must be a list with at least one turn, found {kind}",
            fix="correct the record or the column that build_info names, or remove the record",
        )
    return found


def read_turns(found: Any, where: str, spelling: Spelling = PLAIN, system: str = "") -> list[tuple[Role, str]]:
    """(role, text) of the turns of a dialogue, see :func:`turn_objects`.

    A turn is ``{role, content}`` or ``{from, value}``, or question and answer in one: ``{user, assistant}``. The
    content may be a list of typed parts.

    Args:
        found: the dialogue.
        where: how messages name the record.
        spelling: of its turns.
        system: system text of a dialogue whose first turn is not one; blank: none.

    Raises:
        DataError: not a list of turns, an unknown speaker, or a turn without text.
        RefusedError: a turn that calls a tool, or an answer that is not to be learned.
    """
    objects = turn_objects(found, where)
    turns = [t for n, turn in enumerate(objects, start=1) for t in _turns(turn, f"{where}: turn {n}", spelling)]
    if system.strip() and turns and turns[0][0] != "system":
        turns.insert(0, ("system", system))
    return turns


def read_history(found: Any, where: str) -> list[tuple[Role, str]]:
    """The turns of earlier ``[question, answer]`` pairs; nothing for a missing value. Raises DataError: not pairs."""
    if isinstance(found, str) and found.strip():
        found = parse_json(found, f"{where}: history")
    if is_missing(found):
        return []
    pairs = found if isinstance(found, list) else [found]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(t, str) for t in p) for p in pairs):
        raise DataError(f"{where}: the history is not a list of [question, answer]", fix="correct or remove the record")
    result: list[tuple[Role, str]] = []
    for question, answer in pairs:
        result += [("user", question), ("assistant", answer)]
    return result


def inline_media(found: Any, kind: str) -> list[Any]:
    """The values of the typed parts of that kind (image, video), in order: ``{"type": "image", "image": "1.jpg"}``.

    ``image_url`` holds the value itself or ``{"url": ...}``, ``source`` perhaps base64 in ``{"data": ...}``. Parts
    without a value are placeholders only.
    """
    turns = [turn for turn in found if isinstance(turn, Mapping)] if isinstance(found, list) else []
    contents = [content for turn in turns for content in turn.values() if isinstance(content, list)]
    parts = [part for content in contents for part in content if isinstance(part, Mapping)]
    ours = [(part, key) for part in parts for key in (kind, f"{kind}_url") if part.get("type") == key]
    values = [next((p[k] for k in (key, *_INSIDE) if p.get(k) is not None), None) for p, key in ours]
    return [named for value in values if (named := _named(value)) is not None]


def _named(value: Any) -> Any:
    """What ``{"url": ...}`` or ``{"media_type": ..., "data": base64}`` holds, or the value itself."""
    if isinstance(value, Mapping) and "data" in value:
        return f"data:{value.get('media_type', 'image')};base64,{value['data']}"
    return value.get("url") if isinstance(value, Mapping) and "url" in value else value


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


def check_refused(record: Mapping[str, Any], columns: Iterable[str], where: str) -> None:
    """Raises RefusedError: the record has a value in one of the columns that must be empty."""
    for column in columns:
        if not is_missing(record.get(column)) and record[column] not in ({}, "[]", "{}"):
            raise _refused(f"{where}: the column {column} has a value, which training cannot use")


def _refused(message: str) -> RefusedError:
    return RefusedError(message, fix="remove such records, or leave them out with build_info.refused: drop")


def _turns(turn: Any, where: str, spelling: Spelling) -> list[tuple[Role, str]]:
    if not isinstance(turn, dict):
        raise DataError(f"{where}: found {type(turn).__name__}, expected an object with role and content")
    role_keys = [spelling.role] if spelling.role else ["from", "role"]
    content_keys = [spelling.content] if spelling.content else ["value", "content"]
    speaker = next((turn[k] for k in role_keys if k in turn), None)
    if speaker is None and (spoken := [k for k in turn if k in ROLES]):  # question and answer in one object
        return [(ROLES[k], _text(turn[k], k, where)) for k in spoken]
    role = spelling.role_of(speaker, where)
    if not is_missing(turn.get("tool_calls")):
        raise _refused(f"{where}: it has tool_calls, and calls of tools are not trained")
    if role == "assistant" and any(turn.get(k) in (0, False) for k in ("loss", "weight")):
        raise _refused(f"{where}: loss or weight is 0, but every answer of a dialogue is trained")
    key = next((k for k in content_keys if k in turn), None)
    if key is None:
        has = ", ".join(sorted(map(str, turn)))
        named = " or ".join(map(repr, content_keys))
        raise DataError(f"{where}: no field {named} (it has {has})", fix="name the text content or value")
    return [(role, _text(turn[key], key, where))]


def _text(content: Any, key: str, where: str) -> str:
    if isinstance(content, list):
        return "".join(_piece(p, where) for p in content)
    if isinstance(content, bool) or not isinstance(content, str | int | float):
        found = "null" if content is None else type(content).__name__
        raise DataError(f"{where}: the {key} is {found}, expected a text", fix="correct or remove the record")
    return str(content)


def _piece(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in _MEDIA_PARTS:
        return _MEDIA_PARTS[kind]
    known = ", ".join(["text", *_MEDIA_PARTS])
    raise DataError(f"{where}: a part of type {kind!r} (known: {known}, each with its value)")
