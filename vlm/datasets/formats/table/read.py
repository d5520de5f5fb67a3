"""Files of records of any kind, with the place of each record for messages.

Supported are JSON (a list, an object that holds one, or an object id -> record), JSON lines, CSV, TSV, Parquet, Arrow,
tar shards of images (``KEY.jpg`` with ``KEY.json`` or ``KEY.txt``),
folders of images (``metadata.jsonl|csv``, or a ``.txt``/``.json`` next to each image), folders written by
``datasets.save_to_disk`` and ``hf://owner/name?split=train&config=...``.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import logging
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Literal

from vlm.common.errors import DataError
from vlm.common.files import is_hidden, visible
from vlm.common.numbers import JSON_NUMBERS
from vlm.datasets.base import field, parse_json, read_text
from vlm.datasets.formats.table.arrow import HUB, StoredRecords, from_arrow, from_disk, from_hub, from_parquet, is_saved
from vlm.datasets.formats.table.head import elements, head_text, json_head
from vlm.datasets.formats.table.record_buffer import PackedRecords, Record
from vlm.datasets.formats.table.shards import ShardRecords

FileType = Literal["", "json", "jsonl", "csv", "tsv", "parquet", "arrow"]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_CELL = 1 << 30
"""Characters of a cell of a CSV file; Python's own limit of 131,072 is less than one image as base64."""

TRAIN_SPLITS = ("train", "training")
OTHER_SPLITS = ("validation", "valid", "val", "dev", "test", "testing", "eval")
"""Folders that divide a dataset, as the Hugging Face hub names them."""

LISTINGS = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
log = logging.getLogger(__name__)


@dataclass
class RecordFile:
    """The records of one file; ``lines``: their line numbers, if the file has lines."""

    name: str
    records: PackedRecords | StoredRecords | ShardRecords
    lines: Sequence[int] | None = None

    def where(self, index: int) -> str:
        """How messages name a record."""
        if self.lines is not None:
            return f"{self.name}:{self.lines[index]}"
        key = self.records[index].get("id") if isinstance(self.records, PackedRecords) else None
        return f"{self.name}: record {index if key is None else key}"

    def columns(self) -> set[str]:
        """The names of all fields that occur."""
        return set(self.records.names)


class AllRows:
    """The records of several files as one list of (record, how messages name it)."""

    def __init__(self, paths: str | Sequence[str], key: str = "", file_type: FileType = "", first: int = 0) -> None:
        """Raises DataError: see :func:`expanded` and :func:`read_rows`."""
        self._files = read_files(paths, key, file_type, first)
        self._starts = list(accumulate((len(rows.records) for rows in self._files), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> tuple[Record, str]:
        """Raises DataError for a record that could not be read."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = bisect_right(self._starts, index) - 1
        rows, k = self._files[file], index - self._starts[file]
        return rows.records[k], rows.where(k)


class RowDataset:
    """A format each of whose samples is one record of ``config.ann_path``, a :class:`~vlm.datasets.base.MapDataset`."""

    def __init__(self, config: Any) -> None:
        """Reads the files. Raises DataError if one is missing or malformed."""
        self.config = config
        self._rows = AllRows(config.ann_path, config.records, config.file_type, config.first)

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, index: int) -> Record:
        """The raw record, with every field of the file."""
        return self._rows[index][0]


def expanded(paths: str | Sequence[str]) -> list[str]:
    """The paths, with ``*`` expanded in local ones. Raises DataError for a pattern without a match."""
    result: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        fits = sorted(glob.glob(str(Path(path).expanduser()))) if "*" in path and not path.startswith(HUB) else [path]
        if not fits:
            raise DataError(f"table: no file {path}", fix="check the path under build_info of the dataset")
        result += fits
    return result


def read_files(paths: str | Sequence[str], key: str = "", file_type: FileType = "", first: int = 0) -> list[RecordFile]:
    """The records of several files, until there are ``first`` of them. Raises DataError: see :func:`read_rows`."""
    result: list[RecordFile] = []
    for path in expanded(paths):
        left = first - sum(len(rows.records) for rows in result)
        if first and not left:
            break
        result.append(read_rows(path, key, file_type, left if first else 0))
    return result


def read_rows(path: str, key: str = "", file_type: FileType = "", first: int = 0) -> RecordFile:
    """The records of a file, a folder or a dataset of the Hugging Face hub.

    A single line or sidecar file that cannot be read is a record that raises DataError on access.

    Args:
        path: what to read.
        key: path (with dots) of the list in a JSON object; needed only if the object holds several lists.
        file_type: kind of a file whose name has no known suffix.
        first: read no more than this many records; of a large text file only the first megabytes are read. 0: all.

    Raises:
        DataError: missing, unreadable, malformed, or without any usable record.
    """
    local = not path.startswith(HUB)
    rows = _local(Path(path).expanduser(), key, file_type, first) if local else RecordFile(path, from_hub(path))
    if first:
        rows.records.keep(first)
    count, faults = len(rows.records), rows.records.faults
    if not count:
        raise DataError(f"table: {path} has no records", fix="check the path under build_info of the dataset")
    fault = next(iter(faults.values()), "")
    if len(faults) == count:
        raise DataError(fault)
    if faults:
        log.warning("%s: %d of %d records cannot be read: %s", rows.name, len(faults), count, fault)
    return rows


def _local(file: Path, key: str, file_type: FileType, first: int = 0) -> RecordFile:
    if file.is_dir():
        return RecordFile(str(file), from_disk(file)) if is_saved(file) else _images(file, first)
    kind = file_type or {".ndjson": "jsonl"}.get(file.suffix.lower(), file.suffix.lower().lstrip("."))
    if kind == "tar":
        return RecordFile(str(file), ShardRecords(file))
    stored = {"parquet": from_parquet, "arrow": from_arrow}
    if kind in stored:
        return RecordFile(str(file), stored[kind](file, first))
    readers: dict[str, Callable[[str, str], RecordFile]] = {
        "json": lambda text, name: _json(text, name, key),
        "jsonl": lambda text, name: _json_lines(text, name, first),
        "csv": lambda text, name: _csv(text, name, ",", first),
        "tsv": lambda text, name: _csv(text, name, "\t", first),
    }
    if kind not in readers:
        raise DataError(
            f"table: {file}: unknown kind of file ({f'suffix .{kind}' if kind else 'no suffix'})",
            fix=f"set build_info.file_type to one of {', '.join([*readers, *stored])}",
        )
    part = head_text(file, f"table: {file}") if first else None
    if part is not None and kind == "json":
        return _from_list(json_head(part, str(file), key, first), str(file))
    return readers[kind](_text(file) if part is None else part, str(file))


def _text(file: Path) -> str:
    text = read_text(file, "table")
    if not text.strip():
        raise DataError(f"table: {file} is empty", fix="download or write it again")
    return text


def _json(text: str, name: str, key: str) -> RecordFile:
    if not key and (rows := _from_elements(text, name)) is not None:
        return rows
    try:
        tree = json.loads(text, object_pairs_hook=_unique if text.lstrip()[:1] == "{" else None, **JSON_NUMBERS)
    except RecursionError:
        raise DataError(f"table: {name} is nested too deeply", fix="repair the file") from None
    except ValueError as error:
        lines = "\n" in text.strip() and text.lstrip()[:1] == "{" and "Extra data" in str(error)
        fix = "set build_info.file_type to jsonl" if lines else "repair the file"
        raise DataError(f"table: {name} is not JSON ({error})", fix=fix) from None
    for step in key.split(".") if key else ():
        if not isinstance(tree, dict) or step not in tree:
            has = ", ".join(list(tree)[:8]) if isinstance(tree, dict) else "it is a list"
            raise DataError(f"table: {name}: no key {step!r} ({has})", fix="set build_info.records to the list's key")
        tree = tree[step]
    if isinstance(tree, dict) and not key:
        lists = [v for v in tree.values() if isinstance(v, list) and all(isinstance(r, dict) for r in v)]
        tree = lists[0] if len(lists) == 1 else tree
    if isinstance(tree, dict) and tree and all(isinstance(r, dict) for r in tree.values()):
        return RecordFile(name, PackedRecords({"id": k, **r} for k, r in tree.items()))
    if not isinstance(tree, list) or (tree and not any(isinstance(r, dict) for r in tree)):
        keys = f" with keys {', '.join(list(tree)[:8])}" if isinstance(tree, dict) else ""
        raise DataError(
            f"table: {name}: expected a list of objects (or id -> object), found {type(tree).__name__}{keys}",
            fix="set build_info.records to the key that holds the list",
        )
    return _from_list(tree, name)


def _from_elements(text: str, name: str) -> RecordFile | None:
    """The records of a JSON list; None for anything else, of which reading the whole tree says what it is."""
    try:
        rows = _from_list(elements(text), name)
    except (ValueError, RecursionError):
        return None
    return rows if len(rows.records.faults) < len(rows.records) else None


def _from_list(tree: Iterable[Any], name: str) -> RecordFile:
    return RecordFile(name, PackedRecords(_object_or_fault(r, f"{name}: record {k}") for k, r in enumerate(tree)))


def _object_or_fault(record: Any, where: str) -> Record | DataError:
    if isinstance(record, dict):
        return record
    return DataError(f"table: {where}: expected an object, found {type(record).__name__}", fix="repair or remove it")


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [k for k, _ in pairs]
        twice = next(k for k in names if names.count(k) > 1)
        raise ValueError(f"key {twice!r} occurs twice in one object, so one of the two records would be lost")
    return result


def _json_lines(text: str, name: str, first: int = 0) -> RecordFile:
    numbers = array("q")

    def records() -> Iterator[Record | DataError]:
        for number, line in enumerate(re.finditer("[^\n]*\n?", text), start=1):
            if line.group().strip():
                numbers.append(number)
                yield _or_fault(partial(_object, line.group(), f"{name}:{number}"))

    return RecordFile(name, PackedRecords(islice(records(), first or None)), numbers)


def _or_fault(read: Callable[[], Record]) -> Record | DataError:
    """What ``read`` gives, or the error that it raises."""
    try:
        return read()
    except DataError as error:
        return error


def _object(text: str, name: str) -> Record:
    record = parse_json(text, f"table: {name}", "repair or remove it")
    if not isinstance(record, dict):
        raise DataError(f"table: {name}: expected an object, found {type(record).__name__}", fix="repair or remove it")
    return record


def _csv(text: str, name: str, delimiter: str, first: int = 0) -> RecordFile:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    numbers = array("q")

    def records(header: Sequence[str]) -> Iterator[Record | DataError]:
        for cells in reader:
            if not cells:
                continue
            numbers.append(reader.line_num)
            if len(cells) == len(header):
                yield dict(zip(header, cells, strict=True))
                continue
            result = f"table: {name}:{reader.line_num}: {len(cells)} cells, the header has {len(header)}"
            yield DataError(result, fix="repair or remove the line; a text that contains the separator needs quotes")

    try:
        header = next(filter(None, reader))  # blank lines do not count
        if "" in header or len(set(header)) < len(header):
            raise DataError(
                f"table: {name}:1: {delimiter.join(header)!r} is not a header",
                fix="name every column once in the first line",
            )
        other = next((d for d in ";\t" if len(header) == 1 and d in header[0]), "")
        if other:
            raise DataError(
                f"table: {name}:1: only one column {header[0]!r}; the separator seems to be {other!r}",
                fix="set build_info.file_type to tsv" if other == "\t" else "save it with commas",
            )
        return RecordFile(name, PackedRecords(islice(records(header), first or None)), numbers)
    except csv.Error as error:
        raise DataError(f"table: {name}:{reader.line_num}: {error}", fix="repair the quotes of that line") from None


def _images(folder: Path, first: int = 0) -> RecordFile:
    """A folder of images with a listing (column ``file_name``) or a text file next to each; or of such folders.

    Of a folder with splits the one for training is read.
    """
    if listing := _listing(folder):
        return _from_listing(listing)
    inner = sorted(f for f in folder.iterdir() if f.is_dir() and not is_hidden(f.name))
    train = next((f for f in inner if f.name.lower() in TRAIN_SPLITS), None)
    others = [f.name for f in inner if f.name.lower() in OTHER_SPLITS]
    if train is not None:
        if others:
            log.warning("%s: only its split %s is read, not %s", folder, train.name, ", ".join(others))
        return _images(train, first)
    if others and len(others) == len(inner):
        names = ", ".join(str(folder / name) for name in others)
        raise DataError(f"table: {folder} has splits, but none for training", fix=f"name one: {names}")
    if listings := [listing for f in inner if (listing := _listing(f))]:
        parts = [_from_listing(listing) for listing in listings]
        records = (_or_fault(partial(part.records.__getitem__, k)) for part in parts for k in range(len(part.records)))
        return RecordFile(str(folder), PackedRecords(records))
    return _with_texts(folder, first)


def _listing(folder: Path) -> Path | None:
    return next((folder / name for name in LISTINGS if (folder / name).is_file()), None)


def _from_listing(listing: Path) -> RecordFile:
    rows, root = _local(listing, "", ""), listing.parent.absolute()
    if "file_name" not in rows.columns():
        has = ", ".join(sorted(rows.columns()))
        raise DataError(f"table: {listing} has no column file_name (it has {has})", fix="rename the column")
    records = (_or_fault(partial(_listed, rows, k, root)) for k in range(len(rows.records)))
    return RecordFile(rows.name, PackedRecords(records), rows.lines)


def _with_texts(folder: Path, first: int) -> RecordFile:
    """The images below a folder that have a ``.json`` or ``.txt`` file next to them."""
    found = sorted(islice((f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES), first or None))
    images = visible(found, folder)
    if hidden := len(found) - len(images):
        log.warning("%s: %d hidden images (such as ._1.jpg of a Mac) are left out", folder, hidden)
    files = [[f for f in map(image.with_suffix, (".json", ".txt")) if f.is_file()] for image in images]
    result = [_or_fault(partial(_with_text, f, texts)) for f, texts in zip(images, files, strict=True) if texts]
    if not result:
        raise DataError(
            f"table: {folder}: {len(images)} images, none of them with a text",
            fix="put x.txt or x.json next to x.jpg, or metadata.jsonl (file_name, ...) into the folder",
        )
    if bare := len(images) - len(result):
        log.warning("%s: %d images without a .txt or .json file are left out", folder, bare)
    return RecordFile(str(folder), PackedRecords(result))


def _listed(rows: RecordFile, k: int, folder: Path) -> Record:
    """A record of a listing, with the whole path of its image."""
    record = rows.records[k]
    return {**record, "image": str(folder / str(field(record, "file_name", rows.where(k))))}


def _with_text(image: Path, files: Sequence[Path]) -> Record:
    """The record of an image and the ``.json`` and ``.txt`` files next to it; ``text`` is that of the ``.txt``."""
    own: Record = {}
    for file in files:
        text = _text(file)
        if file.suffix == ".json":
            own = {k: v for k, v in _object(text, str(file)).items() if k != "text" or str(v or "").strip()}
        else:
            own = {"text": text.strip(), **own}
    return {"id": image.stem, "image": str(image.absolute()), **own}
