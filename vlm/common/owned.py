"""What may be written, overwritten and deleted: nothing that this library did not write itself.

A folder in which something is ever deleted has a list of our own files, :data:`LIST`. Only names on it are deleted, and
a file that is there without being on it is never replaced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from vlm.common.errors import UserError

LIST = "vlm_files.json"

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = ("benchmarks", "docs", "eval_configs", "notebooks", "prompts", "tests", "tools", "train_configs")
"""Folders of a checkout next to the package."""
HEAD = 4096
"""Bytes of a file by which a page or table of ours is recognised."""


def check_output_folder(path: str | Path, key: str = "run.output_dir") -> Path:
    """The folder as a path, which may be missing.

    Raises UserError: it is the working folder or one above it, the home folder or one above it, the file system's root,
    a folder of the sources or of the installed package, or not a folder.
    """
    given, folder = str(path), Path(path).expanduser()
    what = ""
    try:
        real, here, home = folder.resolve(), Path.cwd().resolve(), Path("~").expanduser().resolve()
        if folder.exists() and not folder.is_dir():
            what = "a file"
        elif real == here or real in here.parents:
            what = "the working folder" if real == here else "a folder above the working folder"
        elif real == home or real in home.parents:
            what = "the home folder" if real == home else "a folder above the home folder"
        elif any(source == real or source in real.parents or real in source.parents for source in _sources()):
            what = "a folder of the program's own files"
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte, no home
        what = f"not usable as a folder ({error})"
    if what:
        fix = f"name a folder of its own, e.g. {key}=output/my_run"
        raise UserError(f"{key} is {given!r}, {what}: results are written and replaced there", fix=fix)
    return folder


def _sources() -> list[Path]:
    checkout = PACKAGE.parent
    more = SOURCES if (checkout / "pyproject.toml").is_file() else ()
    return [PACKAGE, *(checkout / name for name in more)]


class OwnedFiles:
    """The files of a folder that this library wrote, as listed in its :data:`LIST`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / LIST

    def names(self) -> set[str]:
        """Listed names, relative and with ``/``; none without a list, or with one that is not ours."""
        try:
            content = json.loads(self.file.read_bytes()) if self.file.is_file() else {}
        except (OSError, ValueError):
            return set()
        listed = content.get("files") if isinstance(content, dict) else None
        return {n for n in listed if isinstance(n, str) and _inside(n)} if isinstance(listed, list) else set()

    def add(self, names: Iterable[str]) -> None:
        """Add names to the list, which is replaced as a whole."""
        self.write({*self.names(), *names})

    def write(self, names: Iterable[str]) -> None:
        """Make ``names`` the list."""
        text = json.dumps({"about": "files of this folder that vlm may replace or delete", "files": sorted(set(names))})
        replace_text(self.file, text + "\n")

    def foreign(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are there without being listed."""
        listed = self.names()
        return [n for n in names if n not in listed and os.path.lexists(self.folder / n)]

    def refuse_foreign(self, names: Iterable[str]) -> None:
        """Raise UserError if one of ``names`` is there without being listed."""
        if found := self.foreign(names):
            raise foreign_files(self.folder, found)

    def clear(self, names: Iterable[str]) -> None:
        """Delete those of ``names`` that are listed, and folders that are empty then; anything else stays."""
        listed = self.names()
        gone = [n for n in names if n in listed]
        for name in sorted(gone, key=lambda n: -n.count("/")):
            path = self.folder / name
            if path.is_dir() and not path.is_symlink():
                remove_if_empty(path)
            elif not any(p.is_symlink() for p in list(path.parents)[: name.count("/")]):
                path.unlink(missing_ok=True)
        if gone:
            self.write(listed - set(gone))


def foreign_files(folder: Path, names: Iterable[str]) -> UserError:
    """The error about files in an output folder that this library did not write."""
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return UserError(
        f"{folder} holds {', '.join(names[:4])}{more}, not written by this library: never replaced or deleted here",
        fix="name another output folder, or move these files away",
    )


def refuse_foreign_file(file: str | Path, ours: Callable[[str], bool]) -> None:
    """Raise UserError if ``file`` exists and ``ours(its first characters)`` is false; an empty file may be replaced."""
    file = Path(file)
    if not os.path.lexists(file):
        return
    if not file.is_file():
        raise UserError(f"{file} exists and is not a file", fix="name another file")
    with file.open("rb") as content:
        head = content.read(HEAD).decode("utf-8", errors="replace")
    if head.strip() and not ours(head):
        raise UserError(
            f"{file} exists and was not written by this command, so it is not replaced",
            fix="name another file, or move this one away",
        )


def remove_if_empty(folder: Path) -> bool:
    """Delete a folder unless something is in it (or it is not there); whether it is gone."""
    try:
        folder.rmdir()
    except OSError:
        return not folder.exists()
    return True


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it is there as a whole or as it was before."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts
