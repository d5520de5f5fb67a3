"""A folder that becomes a dataset while a page is used.

::

    config.yaml                         the model that the page was started with, and the entry that reads the records
    answers-20261130-092755-1f2e3d.jsonl   records of one page, an answer on each line
    images/3f1c0a....png                images and videos as they were uploaded, by the hash of their content

Each process writes files of its own, and always as a whole: pages that run at the same time need no lock, on any file
system, and a killed one leaves what was there before. A file has up to :data:`RECORDS` lines, so that a write stays
small.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError, UserError
from vlm.common.files import is_hidden, read_regular
from vlm.common.owned import HEAD, replace_bytes, replace_text
from vlm.common.types import Image, Video
from vlm.config.tree import to_yaml
from vlm.datasets.media_columns import looks_like_media

log = logging.getLogger(__name__)

CONFIG, IMAGES, RECORD_FILES = "config.yaml", "images", "answers-*.jsonl"
HEADER = "# feedback of the chat page (vlm demo --feedback): vlm data show FOLDER, vlm train FOLDER\n"
"""First line of the configuration, by which such a folder is recognised."""
DATASET = "feedback"
"""Name of the dataset in the configuration."""
LEFT_OUT = "left_out"
"""Column with the reason why a record is not trained on."""
RECORDS = 1000
"""Records of a file."""
MOST = 10 * 2**30
"""Bytes of the folder, from which on nothing more is kept."""
_STORED = re.compile(r"[0-9a-f]{32}\.[a-z0-9]+")


@dataclass
class RecordFile:
    """A file of this process: id -> line, in the order in which they were first given."""

    path: Path
    lines: dict[str, str] = field(default_factory=dict)

    def write(self, lines: dict[str, str]) -> None:
        """Put these lines in place of the former ones; without any the file is deleted. Raises OSError."""
        if lines:
            replace_text(self.path, "".join(f"{line}\n" for line in lines.values()))
        else:
            self.path.unlink(missing_ok=True)
        self.lines = lines


class FeedbackFolder:
    """Keeps records and their media, for any number of threads; other processes may use the same folder.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any] | None = None) -> None:
        """Make the folder, or open one of earlier pages.

        Args:
            path: of the folder; missing, empty or one that this class made.
            config: what a new folder's configuration has besides the dataset: the model.

        Raises:
            UserError: something else is there, or it cannot be written.
        """
        self.path = Path(path).expanduser().absolute()
        self._lock = threading.Lock()
        self._files: list[RecordFile] = []
        check_folder(self.path)
        try:
            (self.path / IMAGES).mkdir(parents=True, exist_ok=True)
            if (self.path / CONFIG).exists():
                probe = self.path / f".{secrets.token_hex(8)}"
                replace_text(probe, HEADER)
                probe.unlink()
            else:
                replace_text(self.path / CONFIG, HEADER + to_yaml({**(config or {}), **self.entry}))
            self._bytes = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        except OSError as error:
            raise UserError(
                f"--feedback {path}: the folder cannot be written ({error.strerror})", fix="name another folder"
            ) from error

    @property
    def entry(self) -> dict[str, Any]:
        """The section of a configuration that reads the records."""
        build_info = {
            "ann_path": str(self.path / RECORD_FILES),
            "image_path": str(self.path / IMAGES),
            "image_first": False,
            "trained": "last",
            "refuse": [LEFT_OUT],
            "refused": "drop",
        }
        return {"datasets": {DATASET: {"format": "conversation_json", "batch_size": 8, "build_info": build_info}}}

    def keep(self, record: Mapping[str, Any], media: Sequence[Image | Video] = ()) -> None:
        """Write a record with its media, in place of an earlier one with the same ``id``.

        Args:
            record: columns; those of the media are added.
            media: with paths as sources, in the order of their placeholders.

        Raises:
            DataError: the file of an image is gone.
            UserError: the disk or the folder is full, or it cannot be written.
        """
        with self._lock, self._told():
            stored = [(type(medium).__name__.lower(), self._store(medium.source)) for medium in media]
            columns = {kind: [name for k, name in stored if k == kind] for kind in ("image", "video")}
            found = {"id": record["id"], **{k: names for k, names in columns.items() if names}, **record}
            line = json.dumps(found, ensure_ascii=False, default=str)
            self._room(len(line.encode("utf-8", "backslashreplace")))
            file = self._file_of(record["id"]) or self._open_file()
            file.write({**file.lines, record["id"]: line})
            for medium, (_, name) in zip(media, stored, strict=True):  # another page may have dropped it meanwhile
                if not (self.path / IMAGES / name).exists():
                    self._store(medium.source)

    def drop(self, key: str) -> None:
        """Delete a record of this page, and the media that no other record has. Raises UserError: see :meth:`keep`."""
        with self._lock, self._told():
            file = self._file_of(key)
            if file is None:
                return
            dropped = file.lines[key]
            file.write({k: line for k, line in file.lines.items() if k != key})
            names = set(_STORED.findall(dropped))
            for other in self.path.glob(RECORD_FILES) if names else ():
                names -= set(_STORED.findall(other.read_text(encoding="utf-8", errors="replace")))
            for name in names:
                (self.path / IMAGES / name).unlink(missing_ok=True)

    def _file_of(self, key: str) -> RecordFile | None:
        return next((file for file in self._files if key in file.lines), None)

    def _open_file(self) -> RecordFile:
        """The newest file of this page, or another where that is full or there is none."""
        if not self._files or len(self._files[-1].lines) >= RECORDS:
            name = RECORD_FILES.replace("*", f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}")
            self._files.append(RecordFile(self.path / name))
        return self._files[-1]

    def _store(self, source: Any) -> str:
        """The name of an image or video in the folder, where it is stored unless it is there."""
        try:
            data = read_regular(source)
        except OSError as error:
            raise DataError("an image of this conversation is no longer here", fix="ask about it again") from error
        suffix = Path(source).suffix.lower()
        name = hashlib.sha256(data).hexdigest()[:32] + (suffix if looks_like_media(f"x{suffix}") else ".bin")
        file = self.path / IMAGES / name
        if not file.exists():
            self._room(len(data))
            replace_bytes(file, data)
        return name

    def _room(self, size: int) -> None:
        if self._bytes + size > MOST:
            raise UserError("the feedback folder is full", fix="tell whoever runs this page")
        self._bytes += size

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises UserError in place of OSError; the log alone names the folder."""
        try:
            yield
        except OSError as error:
            log.warning("%s: feedback cannot be written: %s", self.path, error)
            raise UserError(
                f"the feedback folder cannot be written ({error.strerror})", fix="tell whoever runs this page"
            ) from error


def check_folder(path: str | Path) -> None:
    """Raises UserError: not a folder, one of something else, or a name that a pattern of files cannot hold."""
    path = Path(path).expanduser().absolute()
    option = f"--feedback {path}"
    if set("*?[") & set(str(path)):
        raise UserError(f"{option}: the name has one of * ? [", fix="name another folder")
    try:
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{option} exists and is not a folder", fix="name another folder")
        found = sorted(file.name for file in path.iterdir() if not is_hidden(file.name)) if path.is_dir() else []
        if (path / CONFIG).is_file():
            with (path / CONFIG).open("rb") as file:
                if file.read(HEAD).decode("utf-8", "replace").startswith(HEADER):
                    return
    except OSError as error:
        raise UserError(f"{option} cannot be read ({error.strerror})", fix="name another folder") from error
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise UserError(
            f"{option} holds something else than feedback: {shown}",
            fix="name a new or empty folder, or one of feedback",
        )
