"""Texts of models, visitors and files as the page may show them: nothing in them becomes HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError
from vlm.pages.conversation import numbers

if TYPE_CHECKING:
    from vlm.serve.gradio.branches import Turn

_CODE = re.compile(
    r"(\\`|(?P<fence>`{3,}|~{3,}).*?(?:(?P=fence)|\Z)|(?<!`)(?P<span>`{1,2})(?!`)[^`]+(?P=span)(?!`))", re.DOTALL
)
"""Code of Markdown, a block that is still being written included; Markdown itself escapes what is in it."""


def markdown(text: str) -> str:
    """A text whose Markdown is rendered, and whose tags are shown as they were written."""
    result, end = [], 0
    for code in _CODE.finditer(text):
        result += [_plain(text[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*result, _plain(text[end:])])


def _plain(text: str) -> str:
    return escape(text, quote=False)


def written(shown: str) -> str:
    """The text that :func:`markdown` was given."""
    result, end = [], 0
    for code in _CODE.finditer(shown):
        result += [unescape(shown[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*result, unescape(shown[end:])])


def messages(turns: Sequence[Turn], name: str) -> list[dict[str, Any]]:
    """The questions and one model's answers for the page's chat widget."""
    shown: list[dict[str, Any]] = []
    for turn in turns:
        files = [{"path": medium.source} for medium in turn.files]
        shown.append({"role": "user", "content": [*files, markdown(turn.text)]})
        if text := _answer(turn, name):
            shown.append({"role": "assistant", "content": text})
    return shown


def turn_at(turns: Sequence[Turn], name: str, index: int) -> Turn | None:
    """The turn that message ``index`` of :func:`messages` belongs to."""
    owners = [turn for turn in turns for _ in range(1 + bool(_answer(turn, name)))]
    return owners[index] if 0 <= index < len(owners) else None


def has_answer(turn: Turn, name: str) -> bool:
    """Whether :func:`messages` shows anything in the place of a model's answer."""
    return bool(_answer(turn, name))


def _answer(turn: Turn, name: str) -> str:
    reply = turn.replies.get(name)
    if reply is None:
        return "*(not answered)*" if turn.replies or name in turn.faults else ""
    return markdown(reply.text) if reply.text or reply.record is None else "*(empty answer)*"


def figures(turns: Sequence[Turn], name: str, positions: int | None) -> str:
    """The numbers of a model's last answer as HTML: tokens, speed, time to the first, share of the context.

    ``positions``: how many the model has; None: not known.
    """
    reply = turns[-1].replies.get(name) if turns else None
    record = reply and reply.record
    if not record:
        return ""
    parts = numbers(record).split(", ")
    if positions:
        parts.append(f"context {record.positions / positions:.0%} ({record.positions} of {positions})")
    if record.cached:
        parts.append(f"{record.cached} of {record.prompt} prompt positions remembered")
    if record.finish in ("length", "cancelled", "timeout"):
        parts.append(
            {"length": "cut at the longest answer", "cancelled": "stopped", "timeout": "out of time"}[record.finish]
        )
    return " &middot; ".join(f"<span>{escape(part)}</span>" for part in parts)


def told(error: UserError) -> str:
    """An error as a visitor reads it; of a file no more than its name (the log has the reason)."""
    return _plain(str(error)).replace("\n", "<br>")


def unreadable(paths: Sequence[str]) -> str:
    """What a visitor reads where a file cannot be decoded: nothing that is in it, or about it."""
    names = ", ".join(Path(path).name for path in paths)
    what = "cannot be read: it is" if len(paths) == 1 else "cannot all be read: one is"
    return _plain(f"{names} {what} damaged, too large, or of a format that this model does not take") + (
        "<br>fix: upload JPEG, PNG, GIF or WebP, and videos as H.264 in .mp4"
    )
