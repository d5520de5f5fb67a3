"""What a path is, by its first bytes or by what the folder holds, and its first records."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.common.files import is_hidden, open_regular
from vlm.datasets.base import parse_json, read_json
from vlm.datasets.detect.layouts import Container
from vlm.datasets.formats.shard_reader import ShardRecord, expand, read_member, read_shard
from vlm.datasets.formats.table.arrow import is_saved
from vlm.datasets.formats.table.read import LISTINGS, OTHER_SPLITS, TRAIN_SPLITS, FileType, read_files

HEAD = 200
"""Records that are looked at."""
HEAD_SHARDS = 20
"""The same of tar shards, whose images are read too."""
HEAD_BYTES = 1 << 16
MOST_FILES = 200_000
"""Files of a folder among which those of records are looked for: it may be one of images."""

KINDS: dict[str, tuple[str, ...]] = {
    "json": (".json",),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
}
"""Kind of a file of records -> the suffixes by which it is known."""

_REFUSED = (
    (b"\x80", "a pickle; it could run code, so it is never opened", "export it as JSON Lines or Parquet"),
    (b"PK\x03\x04", "a zip archive", "unpack it and name the file or folder inside"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it and name the file or folder inside"),
)
_GZIP = b"\x1f\x8b"


@dataclass
class Head:
    """The first records of a path.

    Attributes:
        location: what ``ann_path`` or ``storage`` names.
        records: the first records; of a tar, member extension -> bytes, text or JSON.
        container: what holds them.
        file_type: of a file whose name does not say what it is.
        looked: how much was looked at, in words.
        complete: whether that was everything.
        faults: why records could not be read.
        positions: of the records among all that were looked at.
    """

    location: str
    records: list[dict[str, Any]]
    container: Container = "rows"
    file_type: FileType = ""
    looked: str = ""
    complete: bool = False
    faults: list[str] = field(default_factory=list)
    positions: Sequence[int] = ()


def open_head(path: Path) -> Head:
    """The first records of a file or folder.

    Raises DataError: it does not exist, is empty, is of a kind that is not read, or holds several sets of records.
    """
    if path.is_dir():
        return _folder(path)
    kind = kind_of(path)
    if kind == "tar":
        return _shards(str(path))
    suffix = next((k for k, suffixes in KINDS.items() if path.suffix.lower() in suffixes), None)
    return _rows(str(path), "" if suffix == kind else kind)  # type: ignore[arg-type]


def kind_of(file: Path) -> str:
    """``tar``, or one of :data:`KINDS`. Raises DataError: missing, empty, or of a kind that is not read."""
    if not file.exists():
        raise DataError(f"no file {file}", fix="check the path")
    try:
        with open_regular(file) as stream:
            start = stream.read(HEAD_BYTES)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error})") from None
    if not start.strip():
        raise DataError(f"{file} is empty", fix="download or write it again")
    for magic, what, fix in _REFUSED:
        if start.startswith(magic):
            raise DataError(f"{file} is {what}", fix=fix)
    if start[257:262] == b"ustar" or (start.startswith(_GZIP) and file.name.lower().endswith((".tar.gz", ".tgz"))):
        return "tar"
    if start.startswith(_GZIP):
        raise DataError(f"{file} is compressed with gzip", fix=f"gunzip {file}")
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    return _text_kind(file, start)


def _text_kind(file: Path, start: bytes) -> str:
    text = start.decode("utf-8-sig", errors="ignore").lstrip()
    if text[:1] == "[":
        return "json"
    suffix, (line, _, rest) = file.suffix.lower(), text.partition("\n")
    if text[:1] == "{":
        if rest.strip():
            return "jsonl" if _is_object(line) else "json"
        return "json" if suffix == ".json" else "jsonl"
    kind = next((k for k, suffixes in KINDS.items() if suffix in suffixes), None)
    if kind is not None:
        return kind  # its reader says what is wrong with it
    if suffix in ("", ".txt") and len(cells := line.split("\t")) > 1 and all(c.strip() for c in cells):
        return "tsv"
    what = ", ".join(s for suffixes in KINDS.values() for s in suffixes)
    raise DataError(f"{file} is not a file of records (it begins {text[:40]!r})", fix=f"name a file {what}, or .tar")


def _is_object(line: str) -> bool:
    """Whether a line is a whole JSON object, with more after it or not."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows(location: str, file_type: FileType, count: int = 1) -> Head:
    file = read_files(location, "", file_type, HEAD + 1)[0]
    faults = file.records.faults
    size = len(file.records)
    positions = [k for k in range(min(size, HEAD)) if k not in faults]
    complete = size <= HEAD and count == 1
    looked = f"all {size} records" if complete else f"the first {min(size, HEAD)} records"
    looked += f" of the first of {count} files" if count > 1 else ""
    records = [file.records[k] for k in positions]
    return Head(location, records, "rows", file_type, looked, complete, [faults[k] for k in sorted(faults)], positions)


def _shards(storage: str) -> Head:
    raw = list(islice(_records(storage), HEAD_SHARDS + 1))
    faults = [f"{r.shard}: record {r.key}: {r.fault}" for r in raw if r.fault]
    records = [_members(r) for r in raw[:HEAD_SHARDS] if not r.fault]
    if not records:
        raise DataError(f"{storage}: no record can be read" + (f": {faults[0]}" if faults else ""))
    complete = len(raw) <= HEAD_SHARDS
    looked = f"all {len(raw)} records" if complete else f"the first {HEAD_SHARDS} records"
    return Head(storage, records, "shards", "", looked, complete, faults)


def _records(storage: str) -> Iterator[ShardRecord]:
    return (record for shard in expand(storage) for record in read_shard(shard))


def _members(raw: ShardRecord) -> dict[str, Any]:
    """The members of a record: JSON as an object, texts as text, others as their bytes."""
    result: dict[str, Any] = {}
    for extension in raw.members:
        data = read_member(raw, extension)
        if extension == "json" or extension.endswith(".json"):
            try:
                result[extension] = parse_json(data, extension)
            except DataError:
                continue  # the format says so when it reads the record
        else:
            result[extension] = data.decode("utf-8", errors="replace") if extension == "txt" else data
    return result


def _folder(folder: Path) -> Head:
    """The records of a folder: a set of shards, a saved dataset, files of one kind, or images with texts."""
    if (folder / "filter_cap.json").is_file() and (folder / "image").is_dir():
        tree = read_json(folder / "filter_cap.json", "caption_folder")
        records = tree.get("annotations") if isinstance(tree, dict) else None
        records = [r for r in records or [] if isinstance(r, dict)][:HEAD]
        return Head(str(folder), records, "caption_folder", "", f"the first {len(records)} records")
    if (folder / "dataset_dict.json").is_file():
        return _rows(str(_train_split([f for f in folder.iterdir() if f.is_dir()], folder)), "")
    if is_saved(folder):
        return _rows(str(folder), "")
    names = sorted(f for f in folder.iterdir() if f.is_file() and not is_hidden(f.name))
    if any(f.suffix == ".tar" for f in names):
        return _shards(str(folder))
    if any(f.name in LISTINGS for f in names):
        return _rows(str(folder), "")
    below = list(islice(_below(folder), MOST_FILES))
    for suffix in (".parquet", ".arrow"):
        if found := sorted(f for f in below if f.suffix == suffix):
            return _parts(folder, found)
    found = [f for f in names if any(f.suffix.lower() in suffixes for suffixes in KINDS.values())]
    if len(found) > 1:
        listed = ", ".join(f.name for f in found[:8])
        raise DataError(f"{folder} holds several files of records: {listed}", fix="name one of them")
    return open_head(found[0]) if found else _rows(str(folder), "")


def _below(folder: Path, levels: int = 2) -> Iterator[Path]:
    """The visible files of a folder and of those some levels below it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if not entry.is_dir():
                yield Path(entry.path)
            elif levels:
                yield from _below(Path(entry.path), levels - 1)


def _parts(folder: Path, found: list[Path]) -> Head:
    """Files of one set, such as ``data/train-00000-of-00005.parquet``; those of other splits are left out."""
    if len(found) == 1:
        return _rows(str(found[0]), "")
    training = [f for f in found if f.name.lower().startswith(TRAIN_SPLITS) or f.parent.name.lower() in TRAIN_SPLITS]
    other = [f for f in found if f.name.lower().startswith(OTHER_SPLITS) or f.parent.name.lower() in OTHER_SPLITS]
    chosen = training or [f for f in found if f not in other] or found
    if len({f.parent for f in chosen}) > 1:
        folders = ", ".join(sorted({str(f.parent.relative_to(folder)) for f in chosen})[:8])
        raise DataError(f"{folder} holds files of records in several folders: {folders}", fix="name one of them")
    start = chosen[0].name
    while not all(f.name.startswith(start) for f in chosen):
        start = start[:-1]
    head = _rows(str(chosen[0]), "", len(chosen))
    head.location = str(chosen[0]) if len(chosen) == 1 else str(chosen[0].parent / f"{start}*{chosen[0].suffix}")
    return head


def _train_split(folders: list[Path], folder: Path) -> Path:
    split = next((f for f in sorted(folders) if f.name.lower().startswith(TRAIN_SPLITS)), None)
    if split is None:
        names = ", ".join(str(f) for f in sorted(folders)[:8])
        raise DataError(f"{folder} holds several splits, none of them for training", fix=f"name one: {names}")
    return split
