"""The folder of a feature cache.

::

    DIR/vlm_features.json                 format and version
    DIR/PARTS/about.json                  whose results these are; PARTS is a digest of weights, options and dtypes
    DIR/PARTS/recipe-DIGEST.json          the recipe of images or videos that some of the entries went through
    DIR/PARTS/HOST-PID-RANDOM.{dat,idx}   entries one after another, and 64 bytes about each of them

Every process that writes has two files of its own, and only ever appends to them: first an entry, then its line in
the index. Any number of processes, runs and machines can therefore write at a time without a lock (one that a process
killed with -9 holds, or that a network file system does not have), and a process that dies leaves at worst bytes that
no line names. A line has a checksum of itself and of its entry. A database such as LMDB allows one writer at a time
and must not lie on a network file system; a safetensors file is written as a whole; a file per image would be 665,000
files for the data of LLaVA-1.5.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.common.errors import UserError
from vlm.common.files import read_regular
from vlm.common.owned import replace_text

MARKER = "vlm_features.json"
FORMAT, VERSION = "vlm feature cache", 1
ABOUT = "about.json"
PARTS = re.compile(r"[0-9a-f]{32}")
RECIPE = re.compile(r"recipe-([0-9a-f]{16})\.json")
DATA = re.compile(r"[\w.-]+-\d+-[0-9a-f]{8}\.(dat|idx)")
LARGEST = 1 << 24
"""Bytes of a JSON file at most."""
_UNFINISHED = re.compile(rf"\.({re.escape(ABOUT)}|{re.escape(MARKER)}|recipe-[0-9a-f]{{16}}\.json)\.\d+")


class CacheError(UserError):
    """A folder that is not a feature cache, of another version, or that cannot be used."""


def check_folder(folder: Path) -> bool:
    """Whether a cache is there; False: nothing, or an empty folder.

    Raises CacheError: something else is there, or a cache of another version.
    """
    where, fix = f"run.feature_cache.dir: {folder}", "name another folder"
    try:
        if not os.path.lexists(folder):
            return False
        names = os.listdir(folder)
    except OSError as error:
        raise CacheError(f"{where} cannot be read ({error.strerror})", fix=fix) from error
    if not [name for name in names if not _UNFINISHED.fullmatch(name)]:
        return False
    if MARKER not in names:
        raise CacheError(f"{where} holds other files and is not a feature cache (no {MARKER})", fix=fix)
    found = read_json(folder / MARKER)
    if found.get("format") != FORMAT:
        raise CacheError(f"{where}: {MARKER} is not that of a feature cache", fix=fix)
    if found.get("version") != VERSION:
        raise CacheError(
            f"{where} has version {found.get('version')!r} of the format, this program writes and reads {VERSION}",
            fix=f"name another folder, or `vlm cache clear {folder}`",
        )
    return True


def make_folder(folder: Path, parts: str, about: Mapping[str, Any], recipes: Mapping[str, Mapping[str, Any]]) -> Path:
    """The folder of the entries of these parts; what describes it is written if it is missing.

    Raises CacheError: see :func:`check_folder`, or it cannot be written.
    """
    own = folder / parts
    try:
        if not check_folder(folder):
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / MARKER, _text({"format": FORMAT, "version": VERSION}))
        own.mkdir(exist_ok=True)
        described = {ABOUT: about, **{f"recipe-{digest}.json": recipe for digest, recipe in recipes.items()}}
        for name, content in described.items():
            if not (own / name).is_file():
                replace_text(own / name, _text(content))
    except OSError as error:
        raise CacheError(
            f"run.feature_cache.dir: {folder} cannot be written ({error.strerror})", fix="name another folder"
        ) from error
    return own


def parts_of(folder: Path) -> list[Path]:
    """The folders of entries in a cache, by name."""
    return sorted(path for path in folder.iterdir() if PARTS.fullmatch(path.name) and _is_own(path))


def _is_own(path: Path) -> bool:
    """Whether a folder is there, and not a link to one elsewhere."""
    return path.is_dir() and not path.is_symlink()


def used_bytes(folder: Path) -> int:
    """Bytes of all entries and indices of a cache."""
    total = 0
    for parts in parts_of(folder):
        with os.scandir(parts) as files:
            total += sum(_size(file) for file in files if DATA.fullmatch(file.name))
    return total


def _size(file: os.DirEntry[str]) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # cleared meanwhile
        return 0


def clear(folder: Path) -> tuple[int, list[str]]:
    """Delete the files of a cache, of any version, and the folders that are empty then.

    Returns:
        Bytes that were deleted, and the names of files that are not of a cache and stay.

    Raises:
        CacheError: no cache is there, or a file cannot be deleted.
    """
    if not (folder / MARKER).is_file() or read_json(folder / MARKER).get("format") != FORMAT:
        raise CacheError(f"{folder}: no feature cache is there", fix="name the folder of run.feature_cache.dir")
    total, left = 0, []
    try:
        for place in [*parts_of(folder), folder]:  # the marker last
            names = (MARKER, _UNFINISHED) if place == folder else (ABOUT, RECIPE, DATA, _UNFINISHED)
            for file in sorted(place.iterdir()):
                if file.is_file() and not file.is_symlink() and any(re.fullmatch(name, file.name) for name in names):
                    total += file.stat().st_size
                    file.unlink()
                elif not (PARTS.fullmatch(file.name) and _is_own(file)):
                    left.append(str(file))
            if not any(place.iterdir()):
                place.rmdir()
    except OSError as error:
        raise CacheError(f"{error.filename} cannot be deleted ({error.strerror})") from error
    return total, left


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file holds; empty if it is missing, damaged or no mapping."""
    try:
        found = json.loads(read_regular(file, LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
