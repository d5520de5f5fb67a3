"""A conversation in the field's form, as other programs read it: ``{"messages": [{"role": ..., "content": ...}]}``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from vlm.common.errors import DataError, PromptError
from vlm.common.types import Image, Message, Part, Text, Video
from vlm.processors.data_url import image_url, video_part
from vlm.processors.messages import to_messages

MediaForm = Literal["data", "names"]
"""Images and videos in full as ``data:`` addresses, or the paths that they were given by."""


def to_mappings(
    messages: Sequence[Message], original: Callable[[Image | Video], Any], media: MediaForm = "data"
) -> list[dict[str, Any]]:
    """Messages in the OpenAI form; content is a string where there is only text.

    Args:
        messages: of a conversation.
        original: a medium -> what it was before it was decoded.
        media: see :data:`MediaForm`.

    Raises:
        DataError: a medium whose file is gone or that has no file or pixels to write.
    """
    return [
        {
            "role": message.role,
            "content": [_part(part, original, media) for part in message.parts] if message.media else message.text,
        }
        for message in messages
    ]


def to_json(mappings: Sequence[dict[str, Any]], **more: Any) -> str:
    """The text of a file: ``more``, then the messages."""
    return json.dumps({**more, "messages": list(mappings)}, ensure_ascii=False, indent=1) + "\n"


def from_json(text: str, *, files: bool = False, allow_urls: bool = False) -> list[Message]:
    """The messages of such a text, or of a list of messages; nothing is decoded yet.

    Args:
        text: of :func:`to_json`, or what another program wrote.
        files: images and videos may be named by their paths; not for a text from somebody else.
        allow_urls: they may be named by their addresses, which are fetched.

    Raises:
        PromptError: not a conversation, or one with a path while these are not allowed.
        DataError: an address while these are not allowed.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"the conversation is not JSON ({error})", fix='write {"messages": [...]}') from None
    items = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise PromptError("the conversation holds no list of messages", fix='write {"messages": [...]}')
    if not files and (path := next((p for item in items for p in _paths(item)), None)) is not None:
        raise PromptError(f"the conversation names a file ({path[:80]})", fix="write images as data: addresses")
    result: list[Message] = []
    for item in items:
        if item.get("role") == "user":
            read = to_messages([item], allow_urls=allow_urls)
            result += read if isinstance(read, list) else []
        else:
            result.append(_plain(item))
    return result


def _plain(item: dict[str, Any]) -> Message:
    """A message without media."""
    role, content = item.get("role"), item.get("content")
    if isinstance(content, list):  # as some programs write plain text, too
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(texts) if all(isinstance(t, str) for t in texts) else None  # type: ignore[arg-type]
    if not isinstance(content, str):
        raise PromptError(f"a message of the {role} is not text", fix='write {"role": ..., "content": "..."}')
    return Message(role, content)  # type: ignore[arg-type]


def _paths(item: dict[str, Any]) -> list[str]:
    """What a message names images and videos by, other than ``data:`` addresses and those of the network."""
    content = item.get("content")
    values: list[Any] = []
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict):
            value = part.get(str(part.get("type")))
            value = value.get("url") if isinstance(value, dict) else value
            values += (value if isinstance(value, list) else [value]) if part.get("type") != "text" else []
    allowed = ("data:", "http://", "https://")
    return [str(v) for v in values if not isinstance(v, str) or not v.lower().startswith(allowed)]


def _part(part: Part, original: Callable[[Image | Video], Any], media: MediaForm) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    source = original(part)
    kind = "image" if isinstance(part, Image) else "video"
    if source is None:
        found = f"an {kind} of the conversation" if kind == "image" else f"a {kind} of the conversation"
        raise DataError(f"{found} was given as a model's input, which cannot be written", fix="give its file")
    if media == "names" and isinstance(source, str | Path):
        return {"type": f"{kind}_url", f"{kind}_url": {"url": str(source)}}
    if kind == "video":
        return video_part(source)
    return {"type": "image_url", "image_url": {"url": image_url(source)}}
