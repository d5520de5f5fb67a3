"""Tar shards as records: the fields of ``KEY.json``, the text of ``KEY.txt``, and the image ``KEY.jpg|png|webp``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.datasets.base import parse_json
from vlm.datasets.formats.shard_reader import ShardRecord, read_member, read_shard
from vlm.datasets.formats.table.record_buffer import Record

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")


class ShardImage(Mapping[str, Any]):
    """An encoded image in a shard, ``{"bytes": ...}``, which is read when it is needed."""

    def __init__(self, raw: ShardRecord, ext: str) -> None:
        self._raw, self._ext = raw, ext

    def __getitem__(self, key: str) -> Any:
        if key != "bytes":
            raise KeyError(key)
        return read_member(self._raw, self._ext)

    def __contains__(self, key: object) -> bool:
        return key == "bytes"

    def __iter__(self) -> Iterator[str]:
        return iter(("bytes",))

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        """What it is known by: two shards with the same members hold the same image."""
        where = self._raw.members[self._ext]
        return f"{self._raw.key}.{self._ext} of {len(where) if isinstance(where, bytes) else where[1]} bytes"


class ShardRecords(Sequence[Record]):
    """The records of a local tar shard; only headers are read before a record is asked for.

    Attributes:
        names: fields of the first record, since reading all of them would take as long as reading the shard.
        faults: number of a record -> why it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        """Raises DataError: no such file."""
        if not file.is_file():
            raise DataError(f"table: no file {file}", fix="check the path of the shard")
        self._raw = list(read_shard(str(file)))
        self.faults = {k: f"{file}: record {raw.key}: {raw.fault}" for k, raw in enumerate(self._raw) if raw.fault}
        usable = next((k for k in range(len(self)) if k not in self.faults), None)
        self.names = [] if usable is None else list(self[usable])

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index in self.faults:
            raise DataError(self.faults[index])
        raw = self._raw[index]
        where = f"{raw.shard}: record {raw.key}"
        record: Record = {"id": raw.key}
        if "txt" in raw.members:
            record["text"] = read_member(raw, "txt").decode("utf-8-sig", "replace").strip()
        if "json" in raw.members:
            tree = parse_json(read_member(raw, "json"), where)
            if not isinstance(tree, dict):
                raise DataError(f"{where}: its .json is a {type(tree).__name__}, expected an object")
            record |= tree
        if (ext := next((e for e in IMAGE_MEMBERS if e in raw.members), None)) is not None:
            record["image"] = ShardImage(raw, ext)
        return record

    def keep(self, count: int) -> None:
        """Drop all records after the first ``count``."""
        self._raw = self._raw[:count]
        self.faults = {k: fault for k, fault in self.faults.items() if k < count}
