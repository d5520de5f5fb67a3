"""Files that may be in one of several places, or missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vlm.tasks.benchmarks.standard.items import Files


def nearest(files: Files, name: str, folders: Iterable[str], endings: Sequence[str] = ("",)) -> str:
    """``name`` below the media folder, or below the first of ``folders`` in which it is there, with one of ``endings``.

    If it is nowhere, the first place, which the error then names.
    """
    places = [f"{folder}/{name}" if folder else name for folder in ("", *folders)]
    return first_there(files, [place + ending for place in places for ending in endings])


def first_there(files: Files, places: Sequence[str]) -> str:
    """The first of some places below the media folder that is there; if none is, the first."""
    base = files.folder()
    return next((place for place in places if (base / place).exists()), places[0])


def optional_json(files: Files, name: str) -> Any:
    """The content of a JSON file beside the annotations; an empty object if it is not there."""
    name = name.replace("{split}", files.split)
    return files.json(name) if (files.root() / name).is_file() else {}
