"""A conversation for people: one HTML file with its images, or Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError
from vlm.common.types import Image, Message, Video
from vlm.inference.context import turns_of
from vlm.pages.parts import image_uri, render
from vlm.processors.video.read import first_frame

if TYPE_CHECKING:
    from vlm.inference.conversation.record import Record
    from vlm.inference.session import ChatSession

SIDE = 480
"""Longest side of an image on the page, in pixels."""
WHO = {"user": "You", "assistant": "Model", "system": "System"}


def page(session: ChatSession, title: str) -> str:
    """The conversation as HTML that needs no other file; videos by their first frame."""
    turns = [[_message(session, message) for message in turn] for turn in turns_of(session.messages)[1]]
    return render("conversation.html", title=title, system=session.system or "", turns=turns)


def markdown(session: ChatSession, title: str) -> str:
    """The conversation as Markdown; images by their paths, or as ``data:`` addresses where they have none."""
    lines = [f"# {title}", ""]
    lines += [f"System text: {session.system}", ""] if session.system else []
    for message in session.messages:
        lines += [f"**{WHO[message.role]}**", ""]
        for medium in message.media:
            source = session.original(medium)
            where = source if isinstance(source, str | Path) else _uri(medium, source)
            lines += [f"![{_name(medium, source)}](<{where}>)" if where else f"({_name(medium, source)})", ""]
        lines += [message.text, ""]
    return "\n".join(lines)


def numbers(record: Record | None) -> str:
    """``12 tokens, 40.1 tokens/s, first after 0.31 s``, as far as it is known."""
    if record is None:
        return ""
    parts = [f"{record.written} token{'' if record.written == 1 else 's'}"]
    if (speed := record.tokens_per_second) is not None:
        parts.append(f"{speed:.1f} tokens/s")
    if record.to_first is not None:
        parts.append(f"first after {record.to_first:.2f} s")
    return ", ".join(parts)


def _message(session: ChatSession, message: Message) -> dict[str, Any]:
    images, unseen = [], []
    for medium in message.media:
        source = session.original(medium)
        name = _name(medium, source)
        if uri := _uri(medium, source):
            images.append({"name": name, "uri": uri})
        else:
            unseen.append(name)
    about = numbers(session.record(message))
    return {"who": WHO[message.role], "text": message.text, "images": images, "unseen": unseen, "about": about}


def _name(medium: Image | Video, source: Any) -> str:
    kind = type(medium).__name__.lower()
    return f"{kind} {Path(source).name}" if isinstance(source, str | Path) else kind


def _uri(medium: Image | Video, source: Any) -> str:
    """An image as a ``data:`` address, of a video its first frame; empty where it cannot be read any longer."""
    if source is None:
        return ""
    try:
        return image_uri(first_frame(source) if isinstance(medium, Video) else source, SIDE)
    except DataError:
        return ""
