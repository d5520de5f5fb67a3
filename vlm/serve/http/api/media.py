"""Messages of a request as messages of the library: images and videos from bytes only, never from a path."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from vlm.common.errors import DataError
from vlm.common.types import Image, Message, Part, Role, Video
from vlm.processors.image.decode import check_size, from_base64
from vlm.processors.messages import to_messages
from vlm.serve.http.api.requests import ChatMessage, TextPart
from vlm.serve.http.errors import ApiError
from vlm.serve.http.limits import Limits

MIB = 2**20

_DATA = re.compile(r"data:(?P<kind>image|video)/[\w.+-]{1,100}(?:;[\w.+=-]{1,100}){0,4};base64,", re.IGNORECASE)
_REMOTE = re.compile(r"https?://", re.IGNORECASE)


class Fetcher(Protocol):
    """Reads images and videos from addresses that the server allows."""

    async def fetch(self, url: str) -> bytes:
        """What is at ``url``. Raises UserError: it is not allowed, too large, or not there."""
        ...


async def fetch_all(messages: Sequence[ChatMessage], limits: Limits, fetcher: Fetcher | None) -> dict[str, bytes]:
    """What is at the addresses in the messages, after a check of all of them.

    Raises ApiError: more images than allowed, or something that is neither a ``data:`` URL nor an allowed address.
    """
    places = [place for k, message in enumerate(messages) for place in _addresses(message, k)]
    if len(places) > limits.images:
        raise ApiError(f"{len(places)} images and videos, allowed are {limits.images}", param="messages")
    remote: dict[str, bytes] = {}
    for param, url in places:
        if url[:5].lower() == "data:":
            continue
        if not _REMOTE.match(url):
            raise ApiError("expected a data: URL (data:image/png;base64,...); files are not read", param=param)
        if fetcher is None:
            raise ApiError("this server fetches no addresses; send the file as a data: URL", param=param)
        if url not in remote:
            remote[url] = await fetcher.fetch(url)
    return remote


def to_conversation(messages: Sequence[ChatMessage], limits: Limits, remote: Mapping[str, bytes]) -> list[Message]:
    """The messages, with what is at their addresses; slow, so for a thread.

    System texts at the beginning are joined by blank lines.

    Raises:
        ApiError: an image or video that is too large or not one, or a message that templates have no place for.
        PromptError: the last message is not a question.
    """
    system: list[str] = []
    result: list[Message] = []
    for k, message in enumerate(messages):
        role: Role = "system" if message.role == "developer" else message.role
        parts = _parts(message, f"messages.{k}", limits, remote)
        if role != "user" and any(not isinstance(part, str) for part in parts):
            raise ApiError("images and videos belong to the user's messages", param=f"messages.{k}.content")
        if role != "system":
            result.append(Message(role, parts or ""))
        elif result:
            raise ApiError("system messages come before all others", param=f"messages.{k}.role")
        else:
            system.append("".join(part for part in parts if isinstance(part, str)))
    if system:
        result.insert(0, Message("system", "\n\n".join(system)))
    if not any(message.role == "user" for message in result):
        raise ApiError("no message is the user's", param="messages")
    converted = to_messages(result)
    assert isinstance(converted, list)
    return converted


def _addresses(message: ChatMessage, index: int) -> list[tuple[str, str]]:
    """Place in the request, and URL, of every image and video of a message."""
    found = []
    for k, part in enumerate(message.content or [] if not isinstance(message.content, str) else []):
        if not isinstance(part, TextPart):
            kind, address = ("image", part.image_url) if part.type == "image_url" else ("video", part.video_url)
            found.append((f"messages.{index}.content.{k}.{kind}_url.url", address.url))
    return found


def _parts(message: ChatMessage, place: str, limits: Limits, remote: Mapping[str, bytes]) -> list[str | Part]:
    if not isinstance(message.content, list):
        return [message.content] if message.content else []
    parts: list[str | Part] = []
    for k, part in enumerate(message.content):
        where = f"{place}.content.{k}"
        if isinstance(part, TextPart):
            parts += [part.text] if part.text else []
        elif part.type == "image_url":
            parts.append(Image(_image(part.image_url.url, f"{where}.image_url.url", limits, remote)))
        else:
            parts.append(Video(_bytes(part.video_url.url, "video", f"{where}.video_url.url", limits, remote)))
    return parts


def _image(url: str, param: str, limits: Limits, remote: Mapping[str, bytes]) -> bytes:
    data = _bytes(url, "image", param, limits, remote)
    try:
        check_size(data, "of the request", limits.megapixels * 1_000_000)
    except DataError as error:
        raise ApiError(str(error), param=param) from None
    return data


def _bytes(url: str, kind: str, param: str, limits: Limits, remote: Mapping[str, bytes]) -> bytes:
    """The encoded image or video. Raises ApiError: another kind, not base64, empty, or too large."""
    most = limits.medium_mib * MIB
    if url in remote:
        data = remote[url]
    else:
        head = _DATA.match(url[:1000])
        if head is None or head["kind"].lower() != kind:
            example = {"image": "an image (data:image/png", "video": "a video (data:video/mp4"}[kind]
            raise ApiError(f"expected a data: URL of {example};base64,...)", param=param)
        if len(url) - head.end() > most * 4 // 3 + MIB:  # before it is decoded; line breaks count
            raise _too_large(kind, limits, param)
        try:
            data = from_base64(url, "of the request")
        except DataError:
            raise ApiError(f"the {kind} is not base64", param=param) from None
    if len(data) > most:
        raise _too_large(kind, limits, param)
    if not data:
        raise ApiError(f"the {kind} is empty", param=param)
    return data


def _too_large(kind: str, limits: Limits, param: str) -> ApiError:
    text = f"the {kind} is larger than {limits.medium_mib} MiB"
    return ApiError(text, status=413, param=param, code="medium_too_large")
