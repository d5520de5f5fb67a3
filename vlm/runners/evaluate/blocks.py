"""Records in blocks, each of which is answered and written on its own, by whichever process comes to it.

A block's answers are one file, ``part-000007.jsonl``, that is there as a whole or not at all, and is the same whoever
writes it: doing a block twice does no harm. ``part-000007.keys`` says what each of its answers is known by (a hash of
the record's content), so that a block which is started again asks only what has no answer yet.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import DataError, UserError
from vlm.common.owned import replace_text
from vlm.common.paths import make_folder
from vlm.datasets.formats.table.read import AllRows, expanded
from vlm.runners.evaluate.answer_file import write_rows
from vlm.runners.evaluate.generate import Records, Request, Span, lemmatizer
from vlm.tasks.answers import Answer, answer_all

if TYPE_CHECKING:
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Block:
    """Consecutive records of one file."""

    number: int
    file: str
    start: int  # in the file
    count: int
    first: int  # number of its first record among those of all files


def blocks_of(files: Sequence[str], size: int) -> list[Block]:
    """The records of files in blocks of at most ``size``. Raises DataError: a file is missing or cannot be read."""
    result: list[Block] = []
    first = 0
    for file in expanded(files):
        count = len(AllRows([file]))
        for start in range(0, count, size):
            result.append(Block(len(result), file, start, min(size, count - start), first + start))
        first += count
    return result


class PartFolder:
    """The folder with a part per block, and the manifest."""

    def __init__(self, path: str | Path, suffix: str = ".jsonl") -> None:
        """``suffix``: ``.jsonl`` or ``.parquet``."""
        self.path, self.suffix = Path(path), suffix

    def begin(self, fingerprint: str, blocks: int, *, overwrite: bool = False) -> None:
        """Make the folder, or go on with what an interrupted run left.

        Raises UserError: something else is there, or parts of a run with another prompt, model or options.
        """
        make_folder(self.path)
        manifest = self.path / MANIFEST
        parts = [f for f in self.path.iterdir() if _PART.fullmatch(f.name)]
        if not manifest.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path} holds files of others", fix="name a new folder")
        found = self.manifest().get("fingerprint") if manifest.exists() else fingerprint
        if found != fingerprint and not overwrite:
            raise UserError(
                f"{self.path} was written with another prompt, another model or other options",
                fix="name another file, or add --overwrite to start again",
            )
        for file in parts:
            if overwrite or file.suffix == ".started" or int(_PART.fullmatch(file.name)[1]) >= blocks:  # type: ignore[index]
                file.unlink()
        self.note(fingerprint=fingerprint, blocks=blocks, suffix=self.suffix, finished=False)

    def manifest(self) -> dict[str, Any]:
        """What is noted of the run. Raises DataError: it cannot be read."""
        try:
            found = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / MANIFEST} cannot be read ({error})", fix="delete the folder") from None
        return found if isinstance(found, dict) else {}

    def note(self, **facts: Any) -> None:
        """Write the manifest."""
        replace_text(self.path / MANIFEST, json.dumps(facts, indent=1) + "\n")

    def part(self, number: int) -> Path:
        """The answers of a block."""
        return self.path / f"part-{number:06d}{self.suffix}"

    def start(self, number: int) -> int:
        """Note that a block is started; how often it was since the run began, if it never came to its end."""
        with self._started(number).open("ab") as file:
            file.write(b".")
            return file.tell()

    def rows(self, number: int) -> list[dict[str, Any]]:
        """The objects of a part, in order. Raises DataError: it is not there."""
        rows = AllRows([str(self.part(number))])
        return [rows[k][0] for k in range(len(rows))]

    def known(self, number: int, field: str) -> dict[str, str]:
        """Key -> answer of what an earlier run wrote of a block."""
        try:
            keys = json.loads(self._keys(number).read_text(encoding="utf-8"))
            rows = self.rows(number)
        except (OSError, ValueError, DataError):
            return {}
        if len(keys) != len(rows):
            return {}
        return {key: row[field] for key, row in zip(keys, rows, strict=True) if key and not row.get("error")}

    def write(self, number: int, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
        """Write a part; ``keys`` are empty where there is no answer."""
        self._keys(number).unlink(missing_ok=True)  # which would be that of the part before
        write_rows(self.part(number), rows)
        replace_text(self._keys(number), json.dumps(keys))
        self._started(number).unlink(missing_ok=True)

    def merge(self, file: Path, blocks: int) -> None:
        """Write all parts into one file, in the order of the records."""
        rows = (row for number in range(blocks) for row in self.rows(number))
        if file.suffix in (".json", ".parquet") or self.suffix == ".parquet":
            write_rows(file, list(rows))
        else:
            _write_lines(file, (self.part(number) for number in range(blocks)))

    def remove(self) -> None:
        """Delete what this class wrote, and the folder if nothing else is there."""
        for file in self.path.iterdir():
            if _PART.fullmatch(file.name) or file.name == MANIFEST:
                file.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    def _started(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.started"

    def _keys(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.keys"


_PART = re.compile(r"\.?part-(\d{6,})\.(?:jsonl|parquet|keys|started)(?:\.\d+)?")


def _write_lines(file: Path, parts: Iterator[Path]) -> None:
    fresh = file.with_name(f".{file.name}.merging")
    try:
        with fresh.open("w", encoding="utf-8") as out:
            for part in parts:
                out.write(part.read_text(encoding="utf-8"))
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def answer_block(
    block: Block,
    request: Request,
    folder: PartFolder,
    engine: Callable[[], Engine],
    generation: Generation,
    batch_size: int,
) -> tuple[int, str]:
    """Answer a block and write its part; how many of its records cannot be used, and why one of them.

    Args:
        block: the records.
        request: what to ask.
        folder: where the part goes.
        engine: makes the model, which is not needed where all answers are there.
        generation: options of an answer.
        batch_size: records that are answered at a time.
    """
    records = Records(request, span=Span(_rows(block.file), block.start, block.count, block.first))
    keys = records.keys()
    found = {k: Answer(text) for k, text in folder.known(block.number, request.answer_field or "text_output").items()}
    left = {key: k for k, key in keys.items() if key not in found}
    if left:
        model = engine()
        asked = {key: partial(records.conversation, k, model) for key, k in left.items()}
        edit = lemmatizer() if request.lemmatize else list
        found |= answer_all(model, asked, generation, batch_size, edit=edit)
    answers = [found[keys[k]] if k in keys else Answer("", records.faults[k]) for k in range(len(records))]
    rows = [records.line(k, answer) for k, answer in enumerate(answers)]
    folder.write(block.number, rows, ["" if answer.error else keys[k] for k, answer in enumerate(answers)])
    bad = [answer.error for answer in answers if answer.error]
    return len(bad), bad[0] if bad else ""


def _rows(file: str) -> AllRows:
    """The records of a file; those of the last one are kept, since its blocks come one after the other."""
    path = Path(file)
    return _read_rows(file, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=1)
def _read_rows(file: str, _changed: int) -> AllRows:
    return AllRows([file])
