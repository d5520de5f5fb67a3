"""From what a user passes to messages: strings, dictionaries in the OpenAI form, images and videos of many kinds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch

from vlm.common.errors import DataError, PromptError
from vlm.common.paths import is_url, local_path
from vlm.common.types import Example, Image, Message, Part, Prepared, Split, Text, Video
from vlm.processors.image.decode import from_base64
from vlm.processors.placeholders import place_media
from vlm.processors.video.read import IMAGES

Conversation: TypeAlias = str | Message | Mapping[str, Any] | Sequence[Message | Mapping[str, Any]] | Example
"""A question; one message; messages with the user's question last; or a prompt made by ``Processor.encode_prompt``.

A mapping is a message in the OpenAI form: ``{"role": "user", "content": "text"}``, or a list of parts as content:
``{"type": "text", "text": ...}``, ``{"type": "image_url", "image_url": {"url": ...}}`` and ``video_url``, where the URL
may be ``data:...;base64,...`` or the path of a file.
"""

FORMS = 'a string, vlm.Message("user", ...), {"role": "user", "content": ...}, or a list of the last two'


def to_messages(
    question: Conversation, image: Any = None, video: Any = None, *, allow_urls: bool = False
) -> list[Message] | Example:
    """A conversation as messages.

    Args:
        question: see :data:`Conversation`.
        image: image or list of images that the last message is about, see :func:`to_images`.
        video: the same for videos, see :func:`to_videos`.
        allow_urls: fetch ``http(s)`` addresses.

    Raises:
        PromptError: not a conversation.
        DataError: not an image or a video, or an address while these are not allowed.
    """
    media: list[Part] = [*to_images(image, allow_urls), *to_videos(video, allow_urls)]
    if isinstance(question, Example):
        if media:
            raise PromptError("an encoded prompt holds its own images", fix="pass them to Processor.encode_prompt")
        return question
    if isinstance(question, str):
        if not question.strip() and not media:
            raise PromptError("nothing was asked", fix="pass a question")
        text = question.strip()
        return [Message("user", place_media([*media, Text(text)] if text else media, "the question"))]
    items = [question] if isinstance(question, Message | Mapping) else question
    if not isinstance(items, list | tuple):
        raise PromptError(f"found {_shown(question)}, expected a conversation", fix=f"pass {FORMS}")
    if not items:
        raise PromptError("the conversation is empty", fix=f"pass {FORMS}")
    messages = [_message(item, index, allow_urls) for index, item in enumerate(items)]
    if messages[-1].role != "user":
        raise PromptError(f"the last message is the {messages[-1].role}'s", fix="end with the user's question")
    if not media and not messages[-1].media and not messages[-1].text.strip():
        raise PromptError("nothing was asked", fix="end with the user's question")
    if media:
        messages[-1] = Message("user", [*media, *messages[-1].parts])
    placed = [place_media(m.parts, f"message {k}") if m.role == "user" else m.parts for k, m in enumerate(messages)]
    return [Message(m.role, parts) for m, parts in zip(messages, placed, strict=True)]


def to_images(value: Any, allow_urls: bool = False) -> list[Image]:
    """One image or a list (or tuple) of images.

    Args:
        value: path, ``PIL.Image``, encoded bytes, ``data:`` URL, array ``[h, w]`` or ``[h, w, 3]``, tensor
            ``[3, h, w]`` (both uint8, or float from 0 to 1), ``Image``, or a list of these; None: no image.
        allow_urls: fetch ``http(s)`` addresses.

    Raises:
        DataError: anything else.
    """
    items = [] if value is None else value if isinstance(value, list | tuple) else [value]
    return [_medium(Image, item, allow_urls) for item in items]


def to_videos(value: Any, allow_urls: bool = False) -> list[Video]:
    """One video or a list of videos.

    Args:
        value: path of a file or of a folder of frames, encoded bytes, ``data:`` URL, array ``[f, h, w, 3]``, tensor
            ``[f, 3, h, w]``, ``Video``, or a list of frames, each an image; several videos: a list of paths or of
            ``Video``. None: no video.
        allow_urls: fetch ``http(s)`` addresses.

    Raises:
        DataError: anything else.
    """
    if value is None:
        return []
    several = isinstance(value, list | tuple) and value and all(map(_is_video, value))
    return [_medium(Video, item, allow_urls) for item in (value if several else [value])]


def _is_video(item: Any) -> bool:
    """Whether an item of a list is a video of its own rather than a frame."""
    path = isinstance(item, str | os.PathLike) and not str(item).startswith("data:image/")
    return isinstance(item, Video) or (path and not str(item).lower().endswith(IMAGES))


def _message(item: Any, index: int, allow_urls: bool) -> Message:
    where = f"message {index}"
    if isinstance(item, Message):
        return Message(item.role, [_part(part, where, allow_urls) for part in item.parts])
    if not isinstance(item, Mapping):
        raise PromptError(f"{where}: found {_shown(item)}, expected a message", fix=f"pass {FORMS}")
    if set(item) != {"role", "content"}:
        raise PromptError(f"{where}: its keys are {', '.join(map(str, item)) or 'none'}, expected role and content")
    content = item["content"]
    if isinstance(content, str):
        return Message(item["role"], content)
    if not isinstance(content, list | tuple):
        raise PromptError(f"{where}: content is {_shown(content)}, expected a string or a list of parts")
    return Message(item["role"], [_part(part, where, allow_urls) for part in content])


def _part(part: Any, where: str, allow_urls: bool) -> Part | str:
    """One part of a message; a mapping is one in the OpenAI form."""
    if isinstance(part, str | Text):
        return part
    if isinstance(part, Image | Video):
        return _medium(type(part), part, allow_urls)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", "image_url", "video_url", "image", "video") or kind not in part:
        raise PromptError(
            f"{where}: found {_shown(part)}, expected a part of type text, image_url or video_url",
            fix='e.g. {"type": "image_url", "image_url": {"url": "cat.jpg"}}',
        )
    value = part[kind]
    if kind.endswith("_url") and isinstance(value, Mapping):
        value = value.get("url")
    if kind == "text":
        if not isinstance(value, str):
            raise PromptError(f"{where}: text is {_shown(value)}, expected a string")
        return value
    return _medium(Image if kind.startswith("image") else Video, value, allow_urls)


def _medium(kind: type[Image] | type[Video], value: Any, allow_urls: bool) -> Any:
    """``value`` as an ``Image`` or ``Video``; what an image recipe gave (floats, tiles) stays as it is."""
    read = _image if kind is Image else _video
    if not isinstance(value, kind):
        return kind(read(value, allow_urls))
    source = value.source
    if isinstance(source, Prepared | Split) or (isinstance(source, torch.Tensor) and source.is_floating_point()):
        return value
    if isinstance(source, tuple) and source and kind is Image:  # shown side by side
        return kind(tuple(_image(item, allow_urls) for item in source))
    return kind(read(source, allow_urls))


def _image(value: Any, allow_urls: bool) -> Any:
    """An image as the image recipe reads it."""
    if isinstance(value, str):
        return _fetched(value, "image", allow_urls)
    if isinstance(value, os.PathLike | bytes | bytearray | memoryview) or hasattr(value, "getexif"):  # PIL's images
        return value
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
        if value.ndim == 3 and value.shape[0] in (1, 3, 4):
            value = value.transpose(1, 2, 0)
    if not isinstance(value, np.ndarray):
        fix = "pass a path, PIL image, array, tensor, bytes, or a list of them"
        raise DataError(f"found {_shown(value)}, expected an image", fix=fix)
    array = value[:, :, 0] if value.ndim == 3 and value.shape[2] == 1 else value
    if not np.issubdtype(array.dtype, np.floating) or not array.size:
        return array
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"image: floats from {low:.3g} to {high:.3g}, expected 0 to 1",
            fix="pass uint8 levels, or vlm.Image(tensor) for pixels that went through the model's processor",
        )
    return np.rint(array * 255).astype(np.uint8)


def _video(value: Any, allow_urls: bool) -> Any:
    """A video as the video recipe reads it."""
    if isinstance(value, str):
        return _fetched(value, "video", allow_urls)
    if isinstance(value, os.PathLike | bytes | bytearray | memoryview):
        return value
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 4):
        return [frame if isinstance(frame, str) else _image(frame, allow_urls) for frame in value]
    raise DataError(
        f"found {_shown(value)}, expected a video", fix="pass a path, bytes, or frames (a list, array or tensor)"
    )


def _fetched(text: str, kind: str, allow_urls: bool) -> Any:
    """What a string names: a path, or the bytes of a ``data:`` URL; an ``http(s)`` address is downloaded."""
    if text.startswith("data:"):
        return from_base64(text, f"data URL of the {kind}")
    if text.lower().startswith("file://"):
        return url2pathname(urlsplit(text).path)
    if not text:
        raise DataError(f"{kind}: the path is empty")
    if not is_url(text):
        return os.path.expanduser(text)
    if not allow_urls:
        raise DataError(
            f"{kind} {text}: addresses are not fetched unless allowed",
            fix="vlm.load(..., allow_urls=True), or download the file and pass its path",
        )
    try:
        return str(local_path(text))
    except OSError as error:
        raise DataError(f"{kind} {text}: cannot be fetched ({error})") from error


def _shown(value: Any) -> str:
    """A value in an error message, short."""
    text = repr(value) if isinstance(value, str | int | float | Mapping | type(None)) else f"a {type(value).__name__}"
    return text if len(text) < 80 else f"{text[:76]}..."
