"""Files that a command writes under a name that may be taken: only files that such a command wrote are replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm.common.errors import UserError
from vlm.common.paths import make_folder

HEAD = 4096
"""Bytes of a file by which a page or table of ours is recognised."""
GENERATOR = '<meta name="generator" content="vlm">'
_OLD_PAGE = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
    'content="width=device-width, initial-scale=1"><title>'
)


def is_page(head: str) -> bool:
    """Whether a file that begins so is a page of ours; those of earlier versions do not name their generator."""
    return GENERATOR in head or head.startswith(_OLD_PAGE)


def is_table(head: str) -> bool:
    """Whether a file that begins so is JSON as our commands write it, with an indent of one blank."""
    return head.startswith(('{\n "', "{}"))


def is_records(*names: str) -> Callable[[str], bool]:
    """Whether a file that begins so is lines of JSON whose first key is one of ``names``."""
    return lambda head: head.startswith(tuple(f'{{"{name}":' for name in names))


def write_own(file: str | Path, text: str, ours: Callable[[str], bool]) -> Path:
    """Write a file as a whole; its folder is made if missing.

    Args:
        file: the file, which may be there.
        text: what to write.
        ours: whether a file that begins so may be replaced.

    Raises:
        UserError: another file is there, or it cannot be written.
    """
    file = Path(file)
    make_folder(file.parent)
    refuse_foreign_file(file, ours)
    with written(file):
        replace_text(file, text)
    return file


@contextmanager
def written(file: str | Path) -> Iterator[None]:
    """Raises UserError, in place of OSError, where a file cannot be written, e.g. because the disk is full."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{file} cannot be written ({error.strerror})", fix="name another file, or make room"
        ) from error


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


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that it is there as a whole or as it was before; half characters are written as escapes."""
    replace_bytes(path, text.encode("utf-8", "backslashreplace"))


def replace_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or as it was before."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
