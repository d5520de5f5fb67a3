"""Images and videos of a record: paths, encoded bytes, or lists of these."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.processors.image.decode import from_base64
from vlm.processors.placeholders import Medium

_BASE64 = re.compile(r"(?:/9j/|iVBORw0KGgo|UklGR|R0lGOD|Qk[0-3])[A-Za-z0-9+/\s]{60,}={0,2}\s*\Z")
"""Base64 of a JPEG, PNG, WebP, GIF or BMP: no path looks so, since it would need an ending."""

SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}


def sources(value: Any, folder: str, where: str) -> list[Any]:
    """The sources that an image or video field names; relative paths start at ``folder``, ``null`` names none.

    A text may also be a ``data:`` URL or the base64 of an encoded image.

    Raises DataError: a URL, or not a path, bytes, or an object ``{"bytes", "path"}`` (as in Parquet and on the hub).
    """
    if value is None or value == "":
        return []
    if isinstance(value, list | tuple):
        return [s for v in value for s in sources(v, folder, where)]
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        return sources(value.get("bytes") or value.get("path"), folder, where)
    if isinstance(value, bytes):
        return [value]
    if isinstance(value, str):
        value = value.removeprefix("file://")
        if value.startswith("data:") or _BASE64.match(value):
            return [from_base64(value, where)]
        if "://" in value:
            raise DataError(f"{where}: {value} is a URL", fix="download the images and name the files")
        return [str(Path(os.path.expanduser(folder)) / os.path.expanduser(value))]
    raise DataError(f"{where}: a {type(value).__name__} is not an image", fix="give a path, a list of paths, or bytes")


def missing(media: list[Medium]) -> list[str]:
    """Paths among the sources of ``media`` that do not exist."""
    return [m.source for m in media if isinstance(m.source, str) and not os.path.exists(m.source)]


def flipped(media: list[Medium], question: str, where: str) -> tuple[list[Medium], str]:
    """Two images in reverse order, with left and right swapped in the text. Raises DataError unless there are two."""
    if len(media) != 2:
        raise DataError(f"{where}: flip_share needs two images, found {len(media)}")
    return media[::-1], re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda m: SIDES[m.group()], question)
