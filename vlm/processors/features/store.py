"""Reading and writing the entries of a feature cache."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from vlm.common.files import open_regular
from vlm.common.text import size_text
from vlm.processors.features.entry import DamagedEntry, Entry, unpack
from vlm.processors.features.folder import used_bytes
from vlm.processors.features.index import FEATURES, LAYOUT, LINE, Index, Place, line

log = logging.getLogger(__name__)

LOOK = 2.0
"""Seconds after which a key that was not there is looked up in files that have grown meanwhile."""
_LARGEST = 1 << 33
"""Bytes of an entry at most."""
_OPEN_FILES = 64
_MEASURE = 5.0  # seconds between measurements of the folder


class Reader:
    """Entries by their keys; for loader workers too: it pickles, and files are opened where they are read."""

    def __init__(self, index: Index, width: int | None = None) -> None:
        """``width``: of the tokens; entries with another one count as damaged."""
        self.index = index
        self.width = width
        self._pid, self._files = os.getpid(), dict[str, BinaryIO]()

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "width": self.width}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def features(self, key: bytes) -> tuple[Entry | None, bool]:
        """The entry of a medium, None if there is none; whether one is there that cannot be used."""
        damaged = False
        for place in self._places(key, FEATURES):
            data = self._read(place)
            try:
                entry = None if data is None else unpack(data)
            except DamagedEntry:
                entry = None
            if entry is not None and self.width in (None, entry.features.tokens.shape[-1]):
                return entry, damaged
            damaged = True
        return None, damaged

    def layout(self, key: bytes) -> bytes | None:
        """How an image was split into media; None if that is not known."""
        return next((bytes(d) for place in self._places(key, LAYOUT) if (d := self._read(place)) is not None), None)

    def _places(self, key: bytes, kind: int) -> list[Place]:
        found = self.index.find(key, kind)
        return self.index.find(key, kind) if not found and self.index.refresh(LOOK) else found

    def _read(self, place: Place) -> bytearray | None:
        """The bytes of an entry; None: the file is gone, shorter, cannot be read, or the checksum is another."""
        try:
            file = self._file(place.file)
            if place.length > _LARGEST or os.fstat(file.fileno()).st_size < place.offset + place.length:
                return None
            data = bytearray(place.length)
            file.seek(place.offset)
            if file.readinto(data) != place.length:  # type: ignore[attr-defined]
                return None
        except (OSError, MemoryError):  # in a folder of others, a file may be all holes
            return None
        return data if zlib.crc32(data) == place.crc else None

    def _file(self, name: str) -> BinaryIO:
        if self._pid != os.getpid():  # the position in a file is shared with the parent
            self._pid, self._files = os.getpid(), {}
        if name not in self._files:
            while len(self._files) >= _OPEN_FILES:
                self._files.pop(next(iter(self._files))).close()
            buffered: Any = open_regular(self.index.folder / name)
            self._files[name] = buffered.detach()
        return self._files[name]


class Writer:
    """Appends entries to two files of its own, which are made with the first entry.

    It stops writing, with one warning, when the cache has ``max_bytes`` or the disk is full.

    Attributes:
        entries: media written.
        bytes: bytes written.
        stopped: why nothing more is written; empty while it writes.
    """

    def __init__(self, folder: Path, max_bytes: float) -> None:
        """``folder``: that of the entries; the size of the whole cache, the folder above it, is limited."""
        self.folder, self._most = folder, max_bytes
        self.entries = self.bytes = 0
        self.stopped = ""
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._end, self._used, self._own, self._measured = 0, 0, 0, -_MEASURE

    def write(self, key: bytes, recipe: bytes, pieces: Sequence[Any], kind: int = FEATURES) -> bool:
        """Append an entry; whether it was written."""
        if self.stopped:
            return False
        try:
            if self._full(sum(map(len, pieces))):
                return False
            if self._files is None:
                self._files = self._create()
            data, index = self._files
            crc, length = 0, 0
            for piece in pieces:
                crc = zlib.crc32(piece, crc)
                length += _write(data, piece)
            _write(index, line(key, recipe, kind, self._end, length, crc))
        except OSError as error:
            self._stop(f"{self.folder} cannot be written ({error.strerror})")
            return False
        self._end += length
        self._own += length + LINE
        self.bytes += length
        self.entries += kind == FEATURES
        return True

    def _full(self, length: int) -> bool:
        """Whether an entry of ``length`` bytes would be too much; other processes write too."""
        if time.monotonic() - self._measured >= _MEASURE:
            self._measured, self._own = time.monotonic(), 0
            self._used = used_bytes(self.folder.parent)
        if self._used + self._own + length + LINE <= self._most:
            return False
        size = size_text(self._used + self._own)
        self._stop(f"{self.folder.parent} has {size}, the most that run.feature_cache.max_gb allows")
        return True

    def _stop(self, why: str) -> None:
        self.stopped = why
        log.warning("feature cache: %s; nothing more is written, what is there is still read", why)
        if self._files is not None:
            data, index = self._files
            try:
                data.truncate(self._end)
                index.truncate(os.fstat(index.fileno()).st_size // LINE * LINE)
            except OSError as error:  # no line names those bytes
                log.debug("feature cache: %s", error)

    def _create(self) -> tuple[BinaryIO, BinaryIO]:
        host = "".join(c if c.isalnum() or c in "._-" else "_" for c in socket.gethostname()[:40]) or "host"
        path = self.folder / f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
        data, index = (open(path.with_name(path.name + end), "xb", buffering=0) for end in (".dat", ".idx"))  # noqa: SIM115
        return data, index

    def close(self) -> None:
        """Close the files; what was written is then on the disk, as far as it obeys."""
        files, self._files = self._files, None
        for file in files or ():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                log.debug("feature cache: %s", error)
            file.close()


def _write(file: BinaryIO, piece: Any) -> int:
    """Write all bytes of a piece. Raises OSError."""
    view = memoryview(piece)
    done = 0
    while done < len(view):
        done += file.write(view[done:]) or 0
    return done
