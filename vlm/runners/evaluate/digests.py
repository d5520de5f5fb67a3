"""SHA-256 of files; that of a large file is remembered as long as the file stays as it is."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from vlm.common.files import open_regular
from vlm.common.owned import replace_text
from vlm.common.trust import state_root

log = logging.getLogger(__name__)

REMEMBERED = 1 << 25
"""Bytes from which a digest is remembered; smaller files are read in well under a second."""
CHUNK = 1 << 22
_DIGEST = re.compile("[0-9a-f]{64}")


def file_digest(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a regular file in hexadecimal digits.

    Digests of large files are kept under :func:`~vlm.common.trust.state_root`, by path, size and time of change.

    Raises OSError: it cannot be read.
    """
    file = Path(path).resolve()
    facts = file.stat()
    if facts.st_size < REMEMBERED:
        return _read(file)
    key = f"{file}\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ino}"
    note = state_root() / "digests" / hashlib.sha256(os.fsencode(key)).hexdigest()
    try:
        found = note.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        found = ""
    if _DIGEST.fullmatch(found):
        return found
    digest = _read(file)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        replace_text(note, digest)
    except OSError as error:
        log.debug("%s cannot be written (%s): the digest of %s is not remembered", note, error, file)
    return digest


def digest_of(files: Iterable[str | os.PathLike[str]]) -> str:
    """The SHA-256 of the names and contents of several files, in their order. Raises OSError."""
    result = hashlib.sha256()
    for file in files:
        result.update(Path(file).name.encode("utf-8", "surrogateescape") + b"\0" + bytes.fromhex(file_digest(file)))
    return result.hexdigest()


def _read(file: Path) -> str:
    result = hashlib.sha256()
    with open_regular(file) as content:
        while chunk := content.read(CHUNK):
            result.update(chunk)
    return result.hexdigest()
