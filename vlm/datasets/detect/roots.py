"""The folder that relative paths of images start from: where such files are, near the file that names them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePath

from vlm.common.files import is_hidden

MOST_NAMES, PROBES = 400, 10
"""Names that are counted below the folder that is chosen, and names that are tried in every folder."""
MOST_FOLDERS, DEEPEST, PARENTS = 1000, 2, 2
SEARCHED = "its parents, and two levels of folders below these"
"""Folders that are tried: this many, this many levels below the file's folder and below its parents."""


@dataclass
class Root:
    """A folder, how many of the files are below it, and those that are not."""

    folder: str
    found: int
    count: int
    lacking: list[str] = field(default_factory=list)
    by_name: bool = False  # only their last names are there, in the folder itself

    @property
    def lacking_by_folder(self) -> str:
        """How many files are missing in each folder that their paths begin with."""
        count = Counter(PurePath(name).parts[0] if len(PurePath(name).parts) > 1 else "." for name in self.lacking)
        return ", ".join(f"{folder}: {number}" for folder, number in count.most_common(6))


def find_root(names: Sequence[str], near: Path, given: str = "") -> Root:
    """The folder below which most of the files are; an empty one if all paths are absolute, or none has half of them.

    Args:
        names: paths as the records have them.
        near: folder of the file that names them.
        given: the only folder to look at (``--images``).
    """
    names = list(names)[:MOST_NAMES]
    if given or all(os.path.isabs(os.path.expanduser(name)) for name in names):
        return _root(given, names)
    probes = names[:: max(len(names) // PROBES, 1)][:PROBES]
    best, hits = "", 0
    by_name = ""
    for folder in candidates(near):
        found = sum(os.path.exists(os.path.join(folder, name)) for name in probes)
        if found > hits:
            best, hits = folder, found
        if hits == len(probes):
            break
        if not by_name and all(os.path.exists(os.path.join(folder, PurePath(name).name)) for name in probes):
            by_name = folder
    if not hits and by_name:
        return Root(by_name, 0, len(names), names, by_name=True)
    return _root(best, names) if 2 * hits >= len(probes) else Root("", 0, len(names), names)


def candidates(near: Path) -> Iterator[str]:
    """Folders to try: that of the file, its parents, and what is a few levels below them, each once."""
    near = near.absolute()
    tops = [near, *list(near.parents)[:PARENTS]]
    tops = [top for top in tops if top != Path(top.anchor)] or [near]
    seen: set[str] = set()
    for folder in chain(tops, chain.from_iterable(map(_below, tops))):
        if str(folder) not in seen:
            seen.add(str(folder))
            yield str(folder)
        if len(seen) >= MOST_FOLDERS:
            return


def _below(top: Path) -> Iterator[Path]:
    level = [top]
    for _ in range(DEEPEST):
        inner = [f for folder in level for f in _folders(folder)]
        yield from inner
        level = inner[:MOST_FOLDERS]


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            found = []
            for number, entry in enumerate(entries):
                if number >= MOST_FOLDERS:  # a folder of images, not of folders
                    break
                if entry.is_dir(follow_symlinks=True) and not is_hidden(entry.name):
                    found.append(Path(entry.path))
            return sorted(found)
    except OSError:  # not ours to read
        return []


def _root(folder: str, names: Sequence[str]) -> Root:
    there = [os.path.exists(os.path.join(os.path.expanduser(folder), os.path.expanduser(name))) for name in names]
    lacking = [name for name, found in zip(names, there, strict=True) if not found]
    return Root(folder, sum(there), len(names), lacking)
