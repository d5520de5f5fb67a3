"""Files of records, whatever their kind, as rows that know where they stand.

Read are JSON (a list, an object that holds one, or an object id -> record), JSON lines, CSV, TSV, Parquet,
folders of pictures (``metadata.jsonl|csv``, or a ``.txt``/``.json`` beside each picture), folders written by
``datasets.save_to_disk`` and ``hf://owner/name?split=train&config=...``.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlm.common.errors import DataError
from vlm.datasets.table_arrow import HUB, Record, StoredRecords, from_disk, from_hub, from_parquet, is_saved

FileType = Literal["", "json", "jsonl", "csv", "tsv", "parquet"]
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
log = logging.getLogger(__name__)


@dataclass
class Rows:
    """The records of one file; ``lines`` are their line numbers where the file has lines."""

    name: str
    records: Sequence[Record]
    lines: Sequence[int] | None = None

    def where(self, index: int) -> str:
        """What to call a record in a message."""
        if self.lines is not None:
            return f"{self.name}:{self.lines[index]}"
        key = None if isinstance(self.records, StoredRecords) else self.records[index].get("id")
        return f"{self.name}: record {index if key is None else key}"

    def columns(self) -> set[str]:
        """The names of all fields that occur."""
        if isinstance(self.records, StoredRecords):
            return set(self.records.names)
        return set().union(*(r.keys() for r in self.records)) if self.records else set()


class AllRows:
    """The records of several files as one list of (record, what to call it in a message)."""

    def __init__(self, paths: str | Sequence[str]) -> None:
        """Raises DataError: see :func:`expanded` and :func:`read_rows`."""
        files = [read_rows(path) for path in expanded(paths)]
        self._places = [(rows, k) for rows in files for k in range(len(rows.records))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Record, str]:
        rows, k = self._places[index]
        return rows.records[k], rows.where(k)


def expanded(paths: str | Sequence[str]) -> list[str]:
    """The paths, with ``*`` in a local one replaced by what is there. Raises DataError for a pattern of nothing."""
    found: list[str] = []
    for path in [paths] if isinstance(paths, str) else paths:
        fits = sorted(glob.glob(str(Path(path).expanduser()))) if "*" in path and not path.startswith(HUB) else [path]
        if not fits:
            raise DataError(f"table: no file {path}", fix="check the path under build_info of the dataset")
        found += fits
    return found


def read_rows(path: str, key: str = "", file_type: FileType = "") -> Rows:
    """The records of a file, a folder or a dataset of the Hugging Face hub.

    Args:
        path: what to read.
        key: where the list is in a JSON object (dots go deeper); found alone when there is only one.
        file_type: the kind of a file whose name does not tell it.

    Raises:
        DataError: missing, unreadable, of another shape, or without any record.
    """
    local = not path.startswith(HUB)
    rows = _local(Path(path).expanduser(), key, file_type) if local else Rows(path, from_hub(path))
    if not len(rows.records):
        raise DataError(f"table: {path} holds no record", fix="check the path under build_info of the dataset")
    return rows


def _local(file: Path, key: str, file_type: FileType) -> Rows:
    if file.is_dir():
        return Rows(str(file), from_disk(file)) if is_saved(file) else _pictures(file)
    kind = file_type or {".ndjson": "jsonl"}.get(file.suffix.lower(), file.suffix.lower().lstrip("."))
    if kind == "parquet":
        return Rows(str(file), from_parquet(file))
    readers: dict[str, Callable[[str, str], Rows]] = {
        "json": lambda text, name: _json(text, name, key),
        "jsonl": _json_lines,
        "csv": lambda text, name: _csv(text, name, ","),
        "tsv": lambda text, name: _csv(text, name, "\t"),
    }
    if kind not in readers:
        raise DataError(
            f"table: {file}: a file {kind or 'without ending'!r} is not known",
            fix=f"set build_info.file_type to one of {', '.join([*readers, 'parquet'])}",
        )
    return readers[kind](_text(file), str(file))


def _text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"table: no file {file}", fix="check the path under build_info of the dataset") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"table: {file} cannot be read ({error})") from error
    if not text.strip():
        raise DataError(f"table: {file} is empty", fix="fetch or write it again")
    return text


def _json(text: str, name: str, key: str) -> Rows:
    try:
        tree = json.loads(text, object_pairs_hook=_unique if text.lstrip()[:1] == "{" else None)
    except ValueError as error:
        lines = "\n" in text.strip() and text.lstrip()[:1] == "{" and "Extra data" in str(error)
        fix = "set build_info.file_type to jsonl" if lines else "mend the file"
        raise DataError(f"table: {name} is not JSON ({error})", fix=fix) from None
    for step in key.split(".") if key else ():
        if not isinstance(tree, dict) or step not in tree:
            has = ", ".join(list(tree)[:8]) if isinstance(tree, dict) else "no keys, it is a list"
            raise DataError(f"table: {name}: no key {step!r} ({has})", fix="set build_info.records to the list's key")
        tree = tree[step]
    if isinstance(tree, dict) and not key:
        lists = [v for v in tree.values() if isinstance(v, list) and all(isinstance(r, dict) for r in v)]
        tree = lists[0] if len(lists) == 1 else tree
    if isinstance(tree, dict) and tree and all(isinstance(r, dict) for r in tree.values()):
        return Rows(name, [{"id": k, **r} for k, r in tree.items()])
    if not isinstance(tree, list) or not all(isinstance(r, dict) for r in tree):
        keys = f" with keys {', '.join(list(tree)[:8])}" if isinstance(tree, dict) else ""
        raise DataError(
            f"table: {name}: expected a list of objects (or id -> object), found {type(tree).__name__}{keys}",
            fix="set build_info.records to the key that holds the list",
        )
    return Rows(name, tree)


def _unique(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [k for k, _ in pairs]
        twice = next(k for k in names if names.count(k) > 1)
        raise ValueError(f"key {twice!r} occurs twice in one object, so one of the two records would be lost")
    return found


def _json_lines(text: str, name: str) -> Rows:
    records: list[Record] = []
    numbers: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        records.append(_object(line, f"{name}:{number}"))
        numbers.append(number)
    return Rows(name, records, numbers)


def _object(text: str, name: str) -> Record:
    try:
        record = json.loads(text)
    except ValueError as error:
        raise DataError(f"table: {name} is not JSON ({error})", fix="mend or remove it") from None
    if not isinstance(record, dict):
        raise DataError(f"table: {name}: expected an object, found {type(record).__name__}")
    return record


def _csv(text: str, name: str, delimiter: str) -> Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[Record] = []
    numbers: list[int] = []
    try:
        header = next(reader)
        if "" in header or len(set(header)) < len(header):
            raise DataError(
                f"table: {name}:1: {delimiter.join(header)!r} is no header", fix="name every column in the first line"
            )
        for cells in reader:
            if len(cells) != len(header):
                if not cells:
                    continue
                raise DataError(f"table: {name}:{reader.line_num}: {len(cells)} cells, the header has {len(header)}")
            records.append(dict(zip(header, cells, strict=True)))
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"table: {name}:{reader.line_num}: {error}") from None
    return Rows(name, records, numbers)


def _pictures(folder: Path) -> Rows:
    """A folder of pictures with ``metadata.jsonl|csv`` (column ``file_name``) or a text beside each."""
    for listing in (folder / "metadata.jsonl", folder / "metadata.csv"):
        if listing.is_file():
            rows = _local(listing, "", "")
            if "file_name" not in rows.columns():
                raise DataError(f"table: {listing} has no column file_name ({', '.join(sorted(rows.columns()))})")
            records = [{**r, "image": str(folder.absolute() / r["file_name"])} for r in rows.records]
            return Rows(rows.name, records, rows.lines)
    pictures = sorted(f for f in folder.rglob("*") if f.suffix.lower() in PICTURES)
    found = [r for r in map(_with_text, pictures) if r is not None]
    if not found:
        raise DataError(
            f"table: {folder}: {len(pictures)} pictures, none with a text",
            fix="put x.txt or x.json beside x.jpg, or metadata.jsonl (file_name, ...) into the folder",
        )
    _tell_missing(folder, len(pictures) - len(found))
    return Rows(str(folder), found)


def _with_text(picture: Path) -> Record | None:
    base: Record = {"id": picture.stem, "image": str(picture.absolute())}
    if picture.with_suffix(".json").is_file():
        file = picture.with_suffix(".json")
        return {**base, **_object(_text(file), str(file))}
    file = picture.with_suffix(".txt")
    return {**base, "text": _text(file).strip()} if file.is_file() else None


def _tell_missing(folder: Path, count: int) -> None:
    if count:
        log.warning("%s: %d pictures without a .txt or .json are left out", folder, count)
