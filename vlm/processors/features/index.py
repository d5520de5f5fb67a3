"""Where the entries of a feature cache are: the lines of all index files, found by their keys.

A line is eight unsigned integers of 8 bytes: three of the key, the recipe, offset and length (upper 16 bits: kind) of
the entry, its CRC-32, and the exclusive or of the others. In memory it takes 76 bytes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vlm.common.files import open_regular
from vlm.processors.features.folder import DATA

if TYPE_CHECKING:
    import numpy as np

KEY, RECIPE = 24, 8
"""Bytes of a key, and of what tells recipes apart."""
LINE = 64
FEATURES, LAYOUT = 0, 1
"""Kinds of entries: of a medium, or how an image was split into media."""
SEED = 0x76_66_31_0A_5E_ED_5E_ED
_LENGTH = (1 << 48) - 1
_PIECE = LINE << 18  # bytes that are read at a time
_LARGEST = LINE << 24  # bytes of a file that are read: a folder of others may hold one that is all holes


@dataclass(frozen=True)
class Place:
    """Where an entry is: file of ``DIR/PARTS``, bytes, checksum."""

    file: str
    offset: int
    length: int
    crc: int


def line(key: bytes, recipe: bytes, kind: int, offset: int, length: int, crc: int) -> bytes:
    """The line of an entry in an index file."""
    words = [int.from_bytes(key[k : k + 8], "little") for k in range(0, KEY, 8)]
    words += [int.from_bytes(recipe, "little"), offset, length | kind << 48, crc]
    check = SEED
    for word in words:
        check ^= word
    return b"".join(word.to_bytes(8, "little") for word in [*words, check])


@dataclass(frozen=True)
class Segment:
    """Lines in the order of their first words."""

    first: np.ndarray  # ``[n]``
    lines: np.ndarray  # ``[n, 8]``
    files: np.ndarray  # ``[n]``, numbers of the files that they are from

    @classmethod
    def of(cls, lines: np.ndarray, files: np.ndarray) -> Segment:
        """From lines in any order; of equal keys, later ones stay later."""
        import numpy as np

        order = np.argsort(lines[:, 0], kind="stable")
        lines = np.ascontiguousarray(lines[order])
        return cls(np.ascontiguousarray(lines[:, 0]), lines, files[order])  # a search needs the column in one piece


class Index:
    """The lines of all index files of a folder; reads those that were added whenever it is asked to.

    It can be used by several threads, and pickles without its contents, which are read again.

    Attributes:
        damaged: lines that were left out since their checksum is another.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.damaged = 0
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._names: list[str] = []
        self._read: dict[str, int] = {}
        self._segments: list[Segment] = []
        self._looked = -1.0

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def __len__(self) -> int:
        return sum(len(segment.first) for segment in self._segments)

    def refresh(self, after: float = 0.0) -> bool:
        """Read what was added to the files, if the last look was more than ``after`` seconds ago; whether there was."""
        now = time.monotonic()
        if now - self._looked < after:
            return False
        self._forked()
        with self._lock:
            self._looked = now
            return self._refresh()

    def _forked(self) -> None:
        """A lock that another thread of the parent held at the fork is never released in the child."""
        if self._pid != os.getpid():
            self._pid, self._lock = os.getpid(), threading.Lock()

    def _refresh(self) -> bool:
        import numpy as np

        lines, numbers = [], []
        for name in self._index_files():
            for data in self._added(name):
                found = np.frombuffer(data, "<u8").reshape(-1, 8)
                intact = np.bitwise_xor.reduce(found, axis=1) == SEED
                self.damaged += int((~intact).sum())
                if name not in self._names:
                    self._names.append(name)
                lines.append(found[intact])
                numbers.append(np.full(int(intact.sum()), self._names.index(name), np.uint32))
        if not sum(map(len, lines)):
            return False
        self._add(np.concatenate(lines), np.concatenate(numbers))
        return True

    def _added(self, name: str) -> Iterator[bytes]:
        """What was added to an index file, in pieces of whole lines; of a very large file not all of it."""
        start = self._read.setdefault(name, 0)
        try:
            with open_regular(self.folder / name) as file:
                file.seek(start)
                while start < _LARGEST:
                    data = file.read(_PIECE)
                    whole = len(data) // LINE * LINE  # a process may be writing the last line, or have died then
                    if not whole:
                        return
                    start += whole
                    self._read[name] = start
                    yield data[:whole]
        except OSError:  # cleared meanwhile, or not for this user
            return

    def _index_files(self) -> Iterator[str]:
        """Names of the index files that have grown."""
        try:
            with os.scandir(self.folder) as files:
                found = [
                    (f.name, f.stat().st_size) for f in files if f.name.endswith(".idx") and DATA.fullmatch(f.name)
                ]
        except OSError:
            return
        yield from sorted(name for name, size in found if size >= self._read.get(name, 0) + LINE)

    def _add(self, lines: np.ndarray, numbers: np.ndarray) -> None:
        import numpy as np

        joined = [(lines, numbers)]
        # a few segments, each much larger than the next, so that no line is moved often
        while self._segments and len(self._segments[-1].first) < 4 * sum(len(part) for part, _ in joined):
            last = self._segments.pop()
            joined.append((last.lines, last.files))
        rows, files = (np.concatenate([part[k] for part in joined[::-1]]) for k in (0, 1))
        self._segments.append(Segment.of(rows, files))

    def find(self, key: bytes, kind: int = FEATURES) -> list[Place]:
        """Where entries of this key are, the newest first as far as that is known."""
        import numpy as np

        self._forked()
        words = [int.from_bytes(key[k : k + 8], "little") for k in range(0, KEY, 8)]
        with self._lock:
            segments, names = list(self._segments), self._names
        places = []
        for segment in segments:
            word = np.uint64(words[0])
            for row in range(*(int(np.searchsorted(segment.first, word, side)) for side in ("left", "right"))):  # type: ignore[call-overload]
                _, second, third, _, offset, length, crc, _ = segment.lines[row].tolist()
                if [second, third] == words[1:] and length >> 48 == kind:
                    file = names[int(segment.files[row])].removesuffix(".idx") + ".dat"
                    places.append(Place(file, offset, length & _LENGTH, crc))
        return places[::-1]

    def by_recipe(self) -> dict[str, tuple[int, int]]:
        """Of each recipe, the number of its media and the bytes of its entries."""
        import numpy as np

        counts: dict[str, tuple[int, int]] = {}
        for lines in (segment.lines for segment in self._segments):
            for word in np.unique(lines[:, 3]).tolist():
                own = lines[lines[:, 3] == word]
                media = int((own[:, 5] >> np.uint64(48) == FEATURES).sum())
                size = int((own[:, 5] & np.uint64(_LENGTH)).sum())
                name = int(word).to_bytes(RECIPE, "little").hex()
                known = counts.get(name, (0, 0))
                counts[name] = (known[0] + media, known[1] + size)
        return counts
