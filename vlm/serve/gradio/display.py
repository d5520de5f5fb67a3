"""Texts of models, visitors and files as the page may show them: nothing in them becomes HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm.common.errors import UserError

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


def messages(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a conversation for the page's chat widget."""
    return [{**message, "content": _content(message["content"])} for message in shown]


def _content(content: Any) -> Any:
    if isinstance(content, list):
        return [_content(part) for part in content]
    return markdown(content) if isinstance(content, str) else content


def told(error: UserError) -> str:
    """An error as a visitor reads it; of a file no more than its name (the log has the reason)."""
    return _plain(str(error)).replace("\n", "<br>")


def unreadable(kind: str, path: str) -> str:
    """What a visitor reads of a file that cannot be decoded: nothing that is in it, or about it."""
    fix = "a JPEG, PNG, GIF or WebP" if kind == "image" else "H.264 in .mp4"
    return _plain(f"{Path(path).name} cannot be read as {kind}: it is damaged, too large, or of another format") + (
        f"<br>fix: upload {fix}"
    )
