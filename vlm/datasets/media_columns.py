"""Columns that hold images and videos, by the names that they have in public data sets. Upper and lower case are equal.

Every format and command that reads records knows the same names. A column with another name is named in the
configuration (``build_info.fields: {image: COLUMN}``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["image", "video"]

COLUMNS: dict[Kind, tuple[str, ...]] = {
    "image": (
        *("image", "images", "img", "imgs", "image_path", "image_paths", "img_path", "img_paths"),
        *("image_file", "image_files", "picture", "pictures", "photo", "photos"),
    ),
    "video": ("video", "videos", "video_path", "video_paths", "video_file", "video_files"),
}
"""Kind -> names, the first that has a value counts."""

_FILE = re.compile(r".\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic|mp4|avi|mkv|mov|webm|m4v|mpe?g)\Z", re.IGNORECASE)
_BYTES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"RIFF")


def is_missing(value: Any) -> bool:
    """Whether a field holds nothing: ``null`` (NaN is read as such), an empty text or an empty list."""
    return value is None or value == "" or (isinstance(value, list | tuple) and not value)


def media_column(record: Mapping[str, Any], kind: Kind) -> str | None:
    """The column that holds the images (or videos) of a record; None if no known one has a value."""
    names = {str(name).lower(): name for name in reversed(list(record))}
    found = (names[known] for known in COLUMNS[kind] if known in names)
    return next((name for name in found if not is_missing(record[name])), None)


def looks_like_media(value: Any) -> bool:
    """Whether a value is a file name with the suffix of an image or video, encoded bytes, or a list of these."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(looks_like_media, value))
    if isinstance(value, Mapping):
        return bool(value.get("bytes")) or looks_like_media(value.get("path"))
    if isinstance(value, bytes):
        return value.startswith(_BYTES)
    return isinstance(value, str) and len(value) < 1024 and bool(_FILE.search(value)) and " " not in value.strip()
