"""Messages of a request as messages of the library: images and videos from bytes only, never from a path."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from vlm.common.errors import DataError, UserError
from vlm.common.types import Image, Message, Part, Role, Video
from vlm.processors.image.decode import check_size, from_base64
from vlm.processors.messages import to_messages
from vlm.processors.video.read import open_clip
from vlm.serve.http.api.requests import ChatMessage, TextPart
from vlm.serve.http.errors import ApiError, api_error
from vlm.serve.http.limits import Limits

MIB = 2**20
Kind = Literal["image", "video"]

_DATA = re.compile(r"data:(?P<kind>image|video)/[\w.+-]{1,100}(?:;[\w.+=-]{1,100}){0,4};base64,", re.IGNORECASE)
_REMOTE = re.compile(r"https?://", re.IGNORECASE)


class Fetcher(Protocol):
    """Reads images and videos from addresses that the server allows."""

    async def fetch(self, url: str, kind: Kind | None = None, most: int | None = None) -> bytes:
        """What is at ``url``, at most so many bytes. Raises UserError: it is not allowed, too large, or not there."""
        ...


async def fetch_all(messages: Sequence[ChatMessage], limits: Limits, fetcher: Fetcher | None) -> dict[str, bytes]:
    """What is at the addresses in the messages, after a check of all of them.

    Raises ApiError: more images than allowed, or something that is neither a ``data:`` URL nor an allowed address.
    """
    places = [place for k, message in enumerate(messages) for place in _addresses(message, k)]
    if len(places) > limits.images:
        raise ApiError(f"{len(places)} images and videos, allowed are {limits.images}", param="messages")
    remote: dict[str, bytes] = {}
    left = limits.body_mib * MIB  # together; those in the body are within it too
    for param, kind, url in places:
        if url[:5].lower() == "data:":
            continue
        if not _REMOTE.match(url):
            raise ApiError("expected a data: URL (data:image/png;base64,...); files are not read", param=param)
        if fetcher is None:
            raise ApiError("this server fetches no addresses; send the file as a data: URL", param=param)
        if url not in remote:
            if left <= 0:
                text = f"the images and videos are larger than {limits.body_mib} MiB together"
                raise ApiError(text, status=413, param=param, code="medium_too_large")
            try:
                remote[url] = await fetcher.fetch(url, kind, left)
            except UserError as error:
                raise api_error(error, param) from None
            left -= len(remote[url])
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


def _addresses(message: ChatMessage, index: int) -> list[tuple[str, Kind, str]]:
    """Place in the request, kind and URL of every image and video of a message."""
    found: list[tuple[str, Kind, str]] = []
    for k, part in enumerate(message.content if isinstance(message.content, list) else []):
        place = f"messages.{index}.content.{k}"
        if part.type == "image_url":
            found.append((f"{place}.image_url.url", "image", part.image_url.url))
        elif part.type == "video_url":
            found.append((f"{place}.video_url.url", "video", part.video_url.url))
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
            parts.append(Video(_video(part.video_url.url, f"{where}.video_url.url", limits, remote)))
    return parts


def _image(url: str, param: str, limits: Limits, remote: Mapping[str, bytes]) -> bytes:
    data = _bytes(url, "image", param, limits, remote)
    try:
        check_size(data, "of the request", limits.megapixels * 1_000_000)
    except DataError as error:
        raise ApiError(str(error), param=param) from None
    return data


def _video(url: str, param: str, limits: Limits, remote: Mapping[str, bytes]) -> bytes:
    data = _bytes(url, "video", param, limits, remote)
    try:
        count = open_clip(data, "of the request").count  # as its header says; nothing is decoded
    except DataError as error:
        raise ApiError(str(error), param=param) from None
    if count > limits.frames:
        raise ApiError(f"the video has {count:,} frames, allowed are {limits.frames:,}", param=param)
    return data


def _bytes(url: str, kind: Kind, param: str, limits: Limits, remote: Mapping[str, bytes]) -> bytes:
    """The encoded image or video. Raises ApiError: another kind, not base64, empty, or too large."""
    most = limits.medium_mib * MIB
    if url in remote:
        data = remote[url]
    else:
        head = _DATA.match(url[:1000])
        if head is None or head["kind"].lower() != kind:
            example = "an image (data:image/png" if kind == "image" else "a video (data:video/mp4"
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
