"""What a standard benchmark reads: its files, and one item per question."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.common.text import lines_of, read_text
from vlm.common.types import Image, Message, Sample, Text, Video
from vlm.datasets.base import MAX_TEXT, check_text, parse_json
from vlm.datasets.formats.table.media import sources

MOST_CHOICES = 26
ORIGINAL = "give the original file"


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: unique within the benchmark's split; what answer files name it by.
        question: the text as the annotation file has it; empty for a caption.
        media: images and videos, in order.
        references: what scoring compares with (answers, a letter, a box ...), ready for JSON; None: unknown to us.
        fields: further fields of the record: those that prompts may name as ``{field}``, and groups of the scores.
        choices: the options of multiple choice, in the order in which they are shown.
    """

    id: str
    question: str
    media: tuple[Image | Video, ...]
    references: Any = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Files:
    """The original files of a benchmark.

    Attributes:
        annotations: a file, or the folder that holds the files in their original layout.
        media: folder of the images or videos; empty: that of the annotations.
        split: e.g. ``val`` or ``testA``; empty: the benchmark's only or first one.
        used: every file that was read, in order.
    """

    annotations: Path
    media: Path | None = None
    split: str = ""
    used: list[Path] = field(default_factory=list)

    def find(self, *patterns: str) -> Path:
        """The first file under ``annotations`` that a pattern names (``{split}`` is filled in).

        If ``annotations`` is a file, that file, for the first call; later calls look in its folder.

        Raises DataError: there is none, with all names that were looked for.
        """
        if self.annotations.is_file() and not self.used:
            return self._noted(self.annotations)
        folder = self.root()
        names = [pattern.replace("{split}", self.split) for pattern in patterns]
        for name in names:
            found = sorted(folder.glob(name))
            if found:
                return self._noted(found[0])
        raise DataError(
            f"{self.annotations}: none of {', '.join(names)} is there",
            fix="give the folder with the benchmark's files as they are published, or the file itself",
        )

    def json(self, *patterns: str) -> Any:
        """The content of a JSON file. Raises DataError: missing, or not JSON."""
        file = self.find(*patterns)
        return parse_json(_text(file), str(file), ORIGINAL)

    def json_lines(self, *patterns: str) -> list[dict[str, Any]]:
        """The objects of a JSON Lines file, or of a JSON list. Raises DataError."""
        file = self.find(*patterns)
        result: list[dict[str, Any]] = []
        text = _text(file)
        whole = text.lstrip().startswith("[")
        for number, line in enumerate([text] if whole else lines_of(text), start=1):
            if line.strip():
                found = parse_json(line, f"{file}:{number}", ORIGINAL)
                result += found if whole else [found]
        return result

    def table(self, *patterns: str) -> list[dict[str, str]]:
        """The rows of a file of tab- or comma-separated values with a header. Raises DataError."""
        file = self.find(*patterns)
        csv.field_size_limit(1 << 28)  # an image in base64
        delimiter = "\t" if file.suffix in (".tsv", ".txt") else ","
        try:
            return list(csv.DictReader(StringIO(_text(file), newline=""), delimiter=delimiter))
        except csv.Error as error:
            raise DataError(f"{file}: not a table ({error})", fix=ORIGINAL) from None

    def root(self) -> Path:
        """The folder of the annotations."""
        return self.annotations.parent if self.annotations.is_file() else self.annotations

    def folder(self) -> Path:
        """Where media paths start."""
        return self.root() if self.media is None else self.media

    def image(self, value: Any, where: str = "") -> Image:
        """The image that a record names: a path below :meth:`folder`, base64 or bytes. Raises DataError: none."""
        found = sources(value, str(self.folder()), where or str(self.annotations))
        if len(found) != 1:
            raise DataError(f"{where or self.annotations}: expected an image, found {value!r:.60}", fix="see the file")
        return Image(found[0])

    def video(self, value: str, *endings: str) -> Video:
        """The video that a record names; of several ``endings`` the first that exists."""
        base = self.folder() / value
        candidates = [base, *(base.with_name(base.name + ending) for ending in endings)]
        return Video(str(next((c for c in candidates if c.exists()), candidates[-1])))

    def digest(self) -> str:
        """SHA-256 of the names and contents of the files that were read."""
        result = hashlib.sha256()
        for file in dict.fromkeys(self.used):
            result.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return result.hexdigest()

    def _noted(self, file: Path) -> Path:
        self.used.append(file)
        return file


def _text(file: Path) -> str:
    return read_text(file, max_bytes=MAX_TEXT)


class Items:
    """The questions of a benchmark as a dataset: what the model is asked about each, in a protocol's words."""

    def __init__(
        self,
        items: Sequence[Item],
        prompts: Sequence[str],
        shots: Sequence[tuple[Message, ...]] = (),
        digest: str = "",
    ) -> None:
        """Hold items, the text of each, the examples before each (or none), and the digest of the data."""
        self.items, self.prompts, self.shots, self.digest = items, prompts, shots, digest

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item, before = self.items[index], self.shots[index] if self.shots else ()
        return Sample((*before, asked(item, self.prompts[index])), item.id)

    def record(self, index: int) -> dict[str, Any]:
        """The fields of an item."""
        return dict(self.items[index].fields)


PLACE = "<image>"
"""The place of a medium in a prompt or a question that names one; otherwise media come first."""


def asked(item: Item, prompt: str) -> Message:
    """What the user says: media, then the text; a text with ``<image>`` places says itself where media go."""
    pieces = prompt.split(PLACE)
    if len(pieces) == 1 or len(pieces) != len(item.media) + 1:
        return Message("user", (*item.media, prompt.replace(PLACE, "")))
    parts: list[Text | Image | Video] = []
    for place, piece in enumerate(pieces):
        parts += [Text(piece)] if piece else []
        parts += [item.media[place]] if place < len(item.media) else []
    return Message("user", parts)


def unique(items: Iterator[Item] | Sequence[Item], where: str) -> list[Item]:
    """The items. Raises DataError: there is none, two have the same id, or a question is not a text."""
    result, seen = [], set[str]()
    for item in items:
        for text in (item.id, item.question, *item.choices):
            if not isinstance(text, str):
                raise DataError(f"{where}: question {item.id}: found {text!r:.60}, expected a text", fix=ORIGINAL)
            check_text(text, f"{where}: ")
        if len(item.choices) > MOST_CHOICES:
            raise DataError(f"{where}: question {item.id} has {len(item.choices)} choices", fix="26 have letters")
        if item.id in seen:
            raise DataError(f"{where}: id {item.id} occurs twice", fix="give the original file, or remove one of them")
        seen.add(item.id)
        result.append(item)
    if not result:
        raise DataError(f"{where}: no question in it", fix="give the original file of this benchmark and split")
    return result
