"""Tar shards of pictures and captions (the layout img2dataset writes); home of webdataset.

Local tars are never read in order: their headers are scanned once per pass and a record travels as
(file, offsets) until a loader worker reads its bytes. Skipping ahead on resume therefore costs header
reads only. URLs, pipes and compressed tars go through webdataset, and a record carries its bytes.
"""

from __future__ import annotations

import glob
import json
import random
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vlm.common.errors import DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Image, Sample
from vlm.datasets.base import message

PICTURES = ("jpg", "jpeg", "png", "webp")


Members = dict[str, tuple[int, int] | bytes]


class ShardRecord(NamedTuple):
    """An undecoded record of a shard: member extension -> (offset, size) in a local tar, or its bytes."""

    shard: str
    key: str
    members: Members
    fault: str = ""


@register_dataset("web_shards")
class WebShards:
    """Shards ``00000.tar, 00001.tar ...`` whose members are ``KEY.jpg|png|webp`` and ``KEY.json|txt``.

    Raw record (members ``000000012.jpg`` and ``000000012.json``)::

        {"caption": "a red boat on the river", "url": "https://..."}

    Messages::

        user:      [Image(bytes of 000000012.jpg)]
        assistant: a red boat on the river
    """

    @dataclass
    class Config:
        """Which shards; ``storage`` is a folder, a file, a glob or brace pattern, a URL, or a list of these."""

        storage: str | list[str]
        caption_key: str = "caption"  # field of the .json member
        shuffle: int = 1000  # records held while shuffling; shards are shuffled too
        text_roles: Sequence[str] = ("assistant",)

    def __init__(self, config: Config) -> None:
        """Expands the pattern. Raises DataError when a local shard is missing or none is found."""
        self.config = config
        given = [config.storage] if isinstance(config.storage, str) else list(config.storage)
        self.shards = [shard for pattern in given for shard in _expand(pattern)]
        if not self.shards:
            raise DataError(f"web_shards: no shard at {config.storage}", fix="check build_info.storage of the dataset")

    def records(self, seed: int | None) -> Iterator[ShardRecord]:
        """One pass over all records, shuffled by ``seed`` (order as stored when ``None``).

        A shard that ends early gives its whole records and then one record with ``fault`` set.
        """
        shards = list(self.shards)
        if seed is None:
            yield from (r for shard in shards for r in _scan(shard))
            return
        rng = random.Random(seed)
        rng.shuffle(shards)
        held: list[ShardRecord] = []
        for record in (r for shard in shards for r in _scan(shard)):
            if len(held) < self.config.shuffle:
                held.append(record)
                continue
            if not held:
                yield record
                continue
            place = rng.randrange(len(held))
            held[place], record = record, held[place]
            yield record
        rng.shuffle(held)
        yield from held

    def decode(self, raw: ShardRecord) -> Sample:
        """The sample of a record. Raises DataError: damaged shard, no picture, no caption."""
        where = f"{raw.shard}: record {raw.key}"
        if raw.fault:
            raise DataError(f"{where}: {raw.fault}")
        kind = next((k for k in PICTURES if k in raw.members), None)
        if kind is None:
            raise DataError(f"{where}: no picture (members: {', '.join(raw.members)}; read: {', '.join(PICTURES)})")
        caption = self._caption(raw, where)
        picture = Image(_read(raw, kind))
        return Sample(messages=(message("user", picture), message("assistant", caption)), id=raw.key)

    def _caption(self, raw: ShardRecord, where: str) -> str:
        key = self.config.caption_key
        try:
            if "json" in raw.members:
                tree = json.loads(_read(raw, "json"))
                caption = tree.get(key) if isinstance(tree, dict) else None
            else:
                caption = _read(raw, "txt").decode("utf-8").strip() if "txt" in raw.members else None
        except ValueError as error:
            raise DataError(f"{where}: unreadable caption ({error})") from error
        if not isinstance(caption, str):
            raise DataError(f"{where}: no caption in field {key!r} of its .json nor in a .txt")
        return caption


def _expand(pattern: str) -> list[str]:
    """Shards named by a folder, a file, a glob pattern, a brace pattern or a URL."""
    if Path(pattern).is_dir():
        return sorted(str(p) for p in Path(pattern).glob("*.tar"))
    if Path(pattern).is_file():
        return [pattern]
    from webdataset.shardlists import expand_urls

    names = [n for p in expand_urls(pattern) for n in (sorted(glob.glob(p)) if re.search(r"[*?\[]", p) else [p])]
    missing = [n for n in names if not _remote(n) and not Path(n).is_file()]
    if missing:
        raise DataError(
            f"web_shards: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}",
            fix="download them or narrow the pattern under build_info.storage",
        )
    return names


def _remote(name: str) -> bool:
    return "://" in name or name.startswith("pipe:")


def _scan(shard: str) -> Iterator[ShardRecord]:
    """Records of one shard: neighbouring members with the same key."""
    if _remote(shard) or not shard.endswith(".tar"):
        yield from _stream(shard)
        return
    key, members = "", Members()
    try:
        with tarfile.open(shard, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if not info.isfile():
                    continue
                stem, ext = _split(info.name)
                if stem != key and members:
                    yield ShardRecord(shard, key, members)
                    members = Members()
                key = stem
                members[ext] = (info.offset_data, info.size)
    except (tarfile.TarError, OSError) as error:
        yield ShardRecord(shard, f"after {key or 'start'}", Members(), f"damaged tar ({error})")
        return
    if members:
        yield ShardRecord(shard, key, members)


def _stream(shard: str) -> Iterator[ShardRecord]:
    """Records of a remote or compressed shard, with their bytes."""
    from webdataset.tariterators import tarfile_samples

    try:
        for sample in tarfile_samples([{"url": shard}]):
            members = Members({k: v for k, v in sample.items() if isinstance(v, bytes)})
            yield ShardRecord(shard, str(sample["__key__"]), members)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        yield ShardRecord(shard, "stream", Members(), f"unreadable ({error})")


def _split(name: str) -> tuple[str, str]:
    """``a/0001.seg.jpg`` -> (``a/0001``, ``seg.jpg``): a key ends at the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    stem, _, ext = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ext.lower()


def _read(raw: ShardRecord, kind: str) -> bytes:
    where = raw.members[kind]
    if isinstance(where, bytes):
        return where
    offset, size = where
    try:
        with open(raw.shard, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"{raw.shard}: record {raw.key}: cannot be read ({error.strerror})") from error
    if len(data) < size:
        raise DataError(f"{raw.shard}: record {raw.key}: truncated ({len(data)} of {size} bytes)")
    return data
