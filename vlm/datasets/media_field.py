"""The image or video that a single field of an annotation record holds.

A path of an image, of a video, of a folder of frames, or of a ``.json`` file with base64 text; base64 text itself; a
list of frames; nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.common.types import Image, Video
from vlm.datasets.media_columns import COLUMNS, media_column
from vlm.processors.image.decode import from_base64, read_frames
from vlm.processors.placeholders import Medium

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp")
"""Suffixes of videos; a ``.gif`` is an image."""

_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{32,}\Z")
LONGEST_NAME, LONGEST_PATH = 255, 4096


def medium_of(value: Any, root: str | Path, where: str) -> Medium | None:
    """The image or video that a field holds.

    Args:
        value: the field; relative paths start at ``root``.
        root: a folder.
        where: how messages name the record.

    Raises:
        DataError: neither an existing path nor base64 text nor a list of frames.
    """
    if value is None or value == "":
        return None
    if isinstance(value, list | tuple):
        if len(value) == 1 and _one_image(value[0], root):
            return medium_of(value[0], root, where)
        if not value:
            raise DataError(f"{where}: a video without frames", fix="give at least one frame, or remove the record")
        return Video([_frame(frame, root) for frame in value])
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        return medium_of(value.get("bytes") or value.get("path"), root, where)
    if isinstance(value, bytes):
        return Image(value)
    if not isinstance(value, str):
        raise DataError(
            f"{where}: a {type(value).__name__} is neither an image nor a video",
            fix="give a path, base64 text or frames",
        )
    path = existing(value, root)
    if path is None:
        return Image(_decoded(value, root, where))
    if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
        return Video(str(path))
    if path.suffix.lower() == ".json":
        result = read_frames(path, str(path))
        return Video(result) if isinstance(result, list) else Image(from_base64(result, str(path)))
    return Image(str(path))


def media_of(record: Mapping[str, Any], field: str, root: str | Path, where: str) -> list[Medium]:
    """The images and videos of a record.

    Args:
        record: a record.
        field: their column; empty: the known columns (:data:`vlm.datasets.media_columns.COLUMNS`), images first.
        root: folder that relative paths start from.
        where: how messages name the record.

    Raises:
        DataError: as :func:`medium_of`.
    """
    items = [item for column, value in media_fields(record, field) for item in _items(column, value, root)]
    media = [medium_of(item, root, where) for item in items]
    return [medium for medium in media if medium is not None]


def media_fields(record: Mapping[str, Any], field: str) -> list[tuple[str, Any]]:
    """The columns with images and videos that have a value, and their values, see :func:`media_of`."""
    if field:
        return [] if record.get(field) in (None, "") else [(field, record[field])]
    columns = [media_column(record, kind) for kind in COLUMNS]
    return [(name, record[name]) for name in columns if name is not None]


def _items(column: str, value: Any, root: str | Path) -> list[Any]:
    """The media of a field: lists in a column of images hold images, but base64 texts are frames, as in other lists."""
    if not isinstance(value, list | tuple) or not value:
        return [value]
    if column.lower() in COLUMNS["image"]:
        texts = [item for item in value if isinstance(item, str) and not item.startswith("data:")]
        return [value] if texts and all(existing(t, root) is None and _BASE64.match(t) for t in texts) else list(value)
    return list(value) if all(str(item).lower().endswith(VIDEO_SUFFIXES) for item in value) else [value]


def check_field(value: Any, root: str | Path, where: str) -> None:
    """Check a field without reading the files that it names. Raises DataError as :func:`medium_of` does."""
    if isinstance(value, list | tuple):
        for item in value:
            check_field(item, root, where)
    if isinstance(value, str) and value and existing(value, root) is None:
        _decoded(value, root, where)


def existing(text: str, root: str | Path) -> Path | None:
    """The file or folder that ``text`` names, or None. Text too long for a path (base64) is not looked up."""
    if len(text) >= LONGEST_PATH or max(map(len, text.split("/"))) > LONGEST_NAME:
        return None
    path = Path(os.path.expanduser(root)) / os.path.expanduser(text)
    return path if os.path.exists(path) else None  # False for names that no file can have


def _one_image(value: Any, root: str | Path) -> bool:
    """Whether the only element of a list is one whole medium, as many corpora write it: a path or a ``data:`` URL."""
    return isinstance(value, str) and (existing(value, root) is not None or value.startswith("data:image/"))


def _frame(frame: Any, root: str | Path) -> Any:
    path = existing(frame, root) if isinstance(frame, str) else None
    return frame if path is None else str(path)


def _decoded(text: str, root: str | Path, where: str) -> bytes:
    if not text.startswith("data:") and not _BASE64.match(text):
        shown = text if len(text) <= 120 else text[:117] + "..."
        raise DataError(
            f"{where}: {shown}: no such file in {Path(root).resolve()}",
            fix="name the folder that the paths start from (--media-root), or give base64 text",
        )
    return from_base64(text, where)
