"""The folder of uploaded files: which of them the page may open, and when they are deleted."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vlm.common.errors import DataError, printable

MIB = 2**20
MAX_FILE = 64 * MIB
"""Bytes of one upload, unless the page is started with another limit."""
MAX_FOLDER = 32
"""All uploads together take this many times the largest one; then no more are accepted until old ones expire."""
KEPT_SECONDS = 3600
"""An upload is deleted when it was not used for this long."""
SMALLEST = MIB // 16
"""What an upload counts at least, so that their number is limited too."""


MAX_SENDERS = 1000
"""Visitors that one file is known to be from."""


class UploadFolder:
    """A private folder that holds every file that the page opens or serves.

    Attributes:
        max_bytes: size of the largest upload.
    """

    def __init__(self, root: Path, max_bytes: int = MAX_FILE) -> None:
        self.root = Path(os.path.realpath(root))
        self.max_bytes = max_bytes
        self._own: frozenset[Path] = frozenset()
        self._senders: dict[str, dict[str, None]] = {}
        self._arriving = 0

    def admit(self, path: object) -> str:
        """The path of an upload or a declared example, which may now be opened.

        The one check of every file that a browser names. A path that is refused on its text alone is never looked up,
        and every refusal has the same message, so that nothing tells which files the machine has.

        Raises DataError: anything but a regular file in this folder, or one above the limit.
        """
        if not isinstance(path, str) or "\0" in path or printable(path) != path:  # no file of ours has such a name
            raise _refused()
        normal = Path(os.path.normpath(path))
        if not normal.is_relative_to(self.root) or Path(os.path.realpath(normal)) != normal:
            raise _refused()
        try:
            found = normal.lstat()
        except OSError:
            raise _refused() from None
        if not stat.S_ISREG(found.st_mode) or found.st_size > self.max_bytes:
            raise _refused()
        os.utime(normal)  # in use: an upload expires an hour after its last use
        return str(normal)

    def admit_to(self, path: object, visitor: str) -> str:
        """The same for a file that this visitor uploaded, or an example; whoever learns another's path gets nothing.

        Raises DataError: as :meth:`admit`, or another visitor's upload.
        """
        admitted = self.admit(path)
        if Path(admitted) not in self._own and visitor not in self._senders.get(admitted, ()):
            raise _refused()
        return admitted

    def sent(self, path: str, visitor: str) -> None:
        """Take note of who uploaded a file; those with the same content share one."""
        senders = self._senders.setdefault(path, {})
        senders[visitor] = None
        if len(senders) > MAX_SENDERS:
            del senders[next(iter(senders))]

    def keep_present(self) -> None:
        """Never delete what the folder holds now: the page's own examples."""
        self._own = frozenset(file for file in self.root.rglob("*") if file.is_file())

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """While an upload arrives, room for the largest one is kept."""
        self._arriving += 1
        try:
            yield
        finally:
            self._arriving -= 1

    def make_room(self) -> bool:
        """Delete expired uploads; whether one more of the largest size fits, beside those that are arriving."""
        taken, oldest = 0, time.time() - KEPT_SECONDS
        for file in list(self.root.rglob("*")):
            try:
                found = file.lstat()
                if stat.S_ISDIR(found.st_mode):
                    if found.st_mtime < oldest and not any(file.iterdir()):
                        file.rmdir()
                elif found.st_mtime < oldest and file not in self._own:
                    file.unlink()
                elif file not in self._own:
                    taken += max(found.st_size, SMALLEST)
            except FileNotFoundError:  # deleted by another request
                continue
        for path in [path for path in list(self._senders) if not os.path.lexists(path)]:
            self._senders.pop(path, None)
        return taken + (self._arriving + 1) * self.max_bytes <= MAX_FOLDER * self.max_bytes


def _refused() -> DataError:
    return DataError("this file is not an upload of this page, or it has expired", fix="upload it again")


@functools.cache
def upload_folder() -> UploadFolder:
    """The folder of this process, readable by this user only and deleted at exit; Gradio keeps its files there too."""
    parent = os.environ.get("GRADIO_TEMP_DIR")
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = UploadFolder(Path(tempfile.mkdtemp(prefix="vlm_uploads_", dir=parent)))
    atexit.register(shutil.rmtree, folder.root, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = str(folder.root)
    return folder
