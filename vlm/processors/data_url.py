"""Images and videos as ``data:`` addresses, with the bytes that they came in."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.common.files import read_regular
from vlm.common.paths import local_path
from vlm.processors.image.decode import as_png
from vlm.processors.video.read import IMAGES, open_clip

_KINDS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"AVI ", "video/x-msvideo"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"BM", "image/bmp"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1aE\xdf\xa3", "video/webm"),
)


def image_url(source: Any, name: str = "") -> str:
    """An image as a ``data:`` address: the bytes of its file, or a PNG of an image or array.

    Args:
        source: path, address that was fetched, bytes, PIL image or uint8 array.
        name: what messages call it.

    Raises:
        DataError: not readable, or pixels that went through a model's processor, from which no image can be made.
    """
    if isinstance(source, str | os.PathLike) and not str(source).endswith(".json"):
        return _url(_read(source, f"image {name or source}"))
    if isinstance(source, bytes | bytearray | memoryview):
        return _url(bytes(source))
    return _url(as_png(source, name))


def video_part(source: Any, name: str = "") -> dict[str, Any]:
    """A video as a part of a message: ``video_url`` with the bytes of its file, or ``video`` with its frames.

    Raises DataError: see :func:`image_url`.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        return {"type": "video_url", "video_url": {"url": _url(bytes(source))}}
    single = isinstance(source, str | os.PathLike) and Path(source).suffix.lower() not in (*IMAGES, ".json")
    if single and not Path(source).is_dir():
        return {"type": "video_url", "video_url": {"url": _url(_read(source, f"video {name or source}"))}}
    clip = open_clip(source, name or str(source))
    return {"type": "video", "video": [image_url(frame, name) for frame in clip.read(range(clip.count))]}


def _read(source: str | os.PathLike[str], name: str) -> bytes:
    try:
        return read_regular(local_path(str(source)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{name}: cannot be read ({reason})") from error


def _url(data: bytes) -> str:
    kind = next((kind for at, magic, kind in _KINDS if data.startswith(magic, at)), "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
