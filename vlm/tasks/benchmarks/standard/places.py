"""Where media are, if a benchmark's folders are laid out in more than one way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vlm.tasks.benchmarks.standard.items import Files


def nearest(files: Files, name: str, folders: Iterable[str], endings: Sequence[str] = ("",)) -> str:
    """``name`` below the media folder, or below the first of ``folders`` in which it is there, with one of ``endings``.

    If it is nowhere, the first place, which the error then names.
    """
    base = files.folder()
    candidates = [f"{folder}/{name}{ending}" if folder else f"{name}{ending}" for folder in ("", *folders)
                  for ending in endings]  # fmt: skip
    return next((c for c in candidates if (base / c).is_file()), candidates[0])
