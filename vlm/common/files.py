"""Files that somebody else made: only regular files are opened, and names that no user meant are left out."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

MAX_MEDIUM = 1 << 30
"""Largest file of an image that is read, in bytes: above what the pixel cap holds uncompressed at 16 bits."""

MADE_BY_SYSTEMS = ("__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "$recycle.bin", "@eadir")
"""Names that Windows, macOS and network storages leave beside a user's files, in lower case."""

_NO_WAIT = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0  # a FIFO without a writer would block


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A file opened for reading, unless it is a FIFO, socket, device or folder.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
        ValueError: a null byte in the path.
    """
    number = os.open(path, os.O_RDONLY | _NO_WAIT | (os.O_BINARY if hasattr(os, "O_BINARY") else 0))
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode):
        os.close(number)
        folder = stat.S_ISDIR(mode)
        raise OSError(errno.EISDIR if folder else errno.EINVAL, "is a folder" if folder else "is not a regular file")
    return os.fdopen(number, "rb")


def read_regular(path: str | os.PathLike[str], most: int = MAX_MEDIUM) -> bytes:
    """The contents of a regular file of at most ``most`` bytes. Raises OSError and ValueError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            data = file.read(most + 1)
            if len(data) <= most:
                return data
            size = len(data)
        raise OSError(errno.EFBIG, f"{size:,} bytes, allowed are {most:,}")


def is_hidden(name: str | os.PathLike[str]) -> bool:
    """Whether a relative name is hidden (``._1.jpg``, ``.DS_Store``) or one that a system made (``__MACOSX/``)."""
    parts = PurePosixPath(os.fspath(name)).parts
    return any((p.startswith(".") and p != "..") or p.lower() in MADE_BY_SYSTEMS for p in parts)


def visible(files: list[Path], root: Path) -> list[Path]:
    """The files below ``root`` whose names are not hidden, see :func:`is_hidden`."""
    return [file for file in files if not is_hidden(file.relative_to(root))]
