"""``<image>`` and ``<video>`` in the words of a conversation: the places of its images and videos.

The same rules hold in training, for ``vlm generate``, in examples for few-shot prompting and in chat:

* the k-th ``<image>`` is the k-th image, the k-th ``<video>`` the k-th video (either stands for the other where only
  that kind is left); one line break on each side belongs to the placeholder;
* images and videos that are more than the placeholders come first, in order, before the first question;
* a placeholder without an image or video makes the record unusable, and so does one outside a question.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence

from vlm.common.errors import DataError
from vlm.common.types import Image, Message, Part, Role, Text, Video

Medium = Image | Video
log = logging.getLogger(__name__)

MEDIA_PLACEHOLDER = re.compile(r"\n?<(?:image|video)>\n?")

NOT_QUESTIONS = {"assistant": "an answer", "system": "a system text"}


def attach_media(
    turns: Sequence[tuple[Role, str]], media: Sequence[Medium], where: str, first: bool = True
) -> list[Message]:
    """Messages with every medium at its placeholder, see the module.

    Args:
        turns: (role, text) of a whole dialogue.
        media: its images and videos.
        where: what to call the record in an error.
        first: put the media of a turn before its text, wherever the placeholders are (as LLaVA's corpora are read).

    Raises:
        DataError: more placeholders than media, or one outside a question.
    """
    found = [kind for role, text in turns for kind in _kinds(role, text, where)]
    extra, placed = _ordered(media, found, where)
    at = next((i for i, (role, _) in enumerate(turns) if role == "user"), None)
    if extra and at is None:
        raise DataError(f"{where}: {len(media)} images but no question", fix="remove the record")
    left = iter(placed)
    return [_message(role, text, extra if i == at else [], left, first) for i, (role, text) in enumerate(turns)]


def place_media(parts: Sequence[Part], where: str) -> list[Part]:
    """The parts of a question, with its media at the placeholders in its words.

    Without placeholders, or without media, they stay as they are; a placeholder without a medium is read as words, and
    the log says so.

    Raises DataError: more placeholders than media.
    """
    media = [p for p in parts if not isinstance(p, Text)]
    found = [kind for p in parts if isinstance(p, Text) for kind in _kinds("user", p.text, where)]
    if found and not media:
        log.warning("%s: <image> is read as words, because no image comes with it; give the image, too", where)
    if not media or not found:
        return list(parts)
    extra, placed = _ordered(media, found, where)
    left = iter(placed)
    result: list[Part] = [*extra]
    for part in parts:
        if isinstance(part, Text):
            for k, piece in enumerate(MEDIA_PLACEHOLDER.split(part.text)):
                result += [next(left)] if k else []
                result += [type(part)(piece)] if piece else []
    return result


def _kinds(role: Role, text: str, where: str) -> list[type[Medium]]:
    """The kind of every placeholder in a text. Raises DataError if the text is not a question."""
    found: list[type[Medium]] = [Video if "<video>" in m.group() else Image for m in MEDIA_PLACEHOLDER.finditer(text)]
    if role in NOT_QUESTIONS:
        refuse_placeholders(text, NOT_QUESTIONS[role], where)
    return found


def refuse_placeholders(text: str, place: str, where: str) -> None:
    """Raises DataError: a text that is not a question has a placeholder; ``place``: what the text is."""
    if MEDIA_PLACEHOLDER.search(text):
        raise DataError(
            f"{where}: an image in {place}; models read images in questions only",
            fix="move the placeholder into the question, or remove the record",
        )


def _ordered(media: Sequence[Medium], found: Sequence[type[Medium]], where: str) -> tuple[list[Medium], list[Medium]]:
    """The media without a placeholder, and the others in the order of the placeholders."""
    if len(found) > len(media):
        one = "write one placeholder per image, or none (all images then come first)"
        nothing = "name the field of the images (build_info.fields.image), or remove the placeholders"
        raise DataError(
            f"{where}: {len(found)} <image> placeholders but {len(media)} images", fix=one if media else nothing
        )
    left = {kind: [m for m in media if isinstance(m, kind)] for kind in (Image, Video)}
    extra: list[Medium] = []
    for kind, own in left.items():
        surplus = min(max(len(own) - sum(k is kind for k in found), 0), len(media) - len(found) - len(extra))
        extra += own[:surplus]
        del own[:surplus]
    placed = [(left[kind] or left[Video if kind is Image else Image]).pop(0) for kind in found]
    return extra, placed


def _message(role: Role, text: str, extra: Sequence[Medium], left: Iterator[Medium], first: bool) -> Message:
    pieces = MEDIA_PLACEHOLDER.split(text)
    media = [next(left) for _ in pieces[1:]]
    if first:
        rest = "".join(pieces)
        rest = rest.strip() if media else rest
        return Message(role, [*extra, *media, *([rest] if rest else [])])
    parts: list[str | Part] = [*extra, pieces[0]]
    for medium, following in zip(media, pieces[1:], strict=True):
        parts += [medium, following]
    return Message(role, [p for p in parts if p != ""])
