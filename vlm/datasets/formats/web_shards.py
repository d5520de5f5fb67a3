"""Tar shards of images and captions (the layout img2dataset writes), or of any samples (``vlm data shard``).

The main process only scans the headers of local tars, once per pass: a record travels as (file, offsets) until a loader
worker reads its bytes, so skipping ahead on resume is cheap. URLs (http(s), s3, gs, ...), pipes and compressed tars are
streamed, and a record carries its bytes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlm.common.bounds import Natural
from vlm.common.errors import DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Image, Sample
from vlm.datasets.base import message, parse_json
from vlm.datasets.formats import shard_sample
from vlm.datasets.formats.shard_reader import ShardRecord, expand, read_member, read_shard

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp")


@register_dataset("web_shards")
class WebShards:
    """Shards ``00000.tar, 00001.tar ...`` whose members are ``KEY.jpg|png|webp`` and ``KEY.json|txt``.

    Raw record (members ``000000012.jpg`` and ``000000012.json``)::

        {"caption": "a red boat on the river", "url": "https://..."}

    Messages::

        user:      [Image(bytes of 000000012.jpg)]
        assistant: a red boat on the river

    The caption is that of the ``.json`` or, where that has none or a blank one, the text of the ``.txt``. A record with
    a member ``KEY.sample.json`` is a whole conversation whose images and videos are other members (see
    :mod:`vlm.datasets.formats.shard_sample`); ``vlm data shard`` writes such records.
    """

    @dataclass
    class Config:
        """Which shards; ``storage`` is a folder, a file, a glob or brace pattern, a URL, or a list of these."""

        storage: str | list[str]
        caption_key: str = "caption"  # field of the .json member
        shuffle: Natural = 1000  # size of the shuffle buffer; shards are shuffled too
        text_roles: Sequence[str] = ("assistant",)

    def __init__(self, config: Config) -> None:
        """Expands the pattern. Raises DataError if a local shard is missing or none is found."""
        self.config = config
        value = [config.storage] if isinstance(config.storage, str) else list(config.storage)
        self.shards = [shard for pattern in value for shard in expand(pattern)]
        if not self.shards:
            raise DataError(f"web_shards: no shard at {config.storage}", fix="check build_info.storage of the dataset")

    def records(self, seed: int | None) -> Iterator[ShardRecord]:
        """One pass over all records, shuffled by ``seed`` (None: as stored).

        An unusable record has ``fault`` set: see :func:`vlm.datasets.formats.shard_reader.read_shard`.
        """
        shards = list(self.shards)
        if seed is None:
            yield from (r for shard in shards for r in read_shard(shard))
            return
        rng = random.Random(seed)
        rng.shuffle(shards)
        pending: list[ShardRecord] = []
        for record in (r for shard in shards for r in read_shard(shard)):
            if len(pending) < self.config.shuffle:
                pending.append(record)
                continue
            if pending:
                place = rng.randrange(len(pending))
                pending[place], record = record, pending[place]
            yield record
        rng.shuffle(pending)
        yield from pending

    def decode(self, raw: ShardRecord) -> Sample:
        """The sample of a record. Raises DataError: damaged shard, unusable record, no image or no caption."""
        where = f"{raw.shard}: record {raw.key}"
        if raw.fault:
            raise DataError(f"{where}: {raw.fault}")
        if shard_sample.MEMBER in raw.members:
            text = read_member(raw, shard_sample.MEMBER)
            return shard_sample.from_members(text, lambda ext: read_member(raw, ext), set(raw.members), where)
        kind = next((k for k in IMAGE_MEMBERS if k in raw.members), None)
        if kind is None:
            raise DataError(f"{where}: no image (members: {', '.join(raw.members)}; read: {', '.join(IMAGE_MEMBERS)})")
        caption = self._caption(raw, where)
        image = Image(read_member(raw, kind))
        return Sample(messages=(message("user", image), message("assistant", caption)), id=raw.key)

    def _caption(self, raw: ShardRecord, where: str) -> str:
        key, caption = self.config.caption_key, None
        if "json" in raw.members:
            tree = parse_json(read_member(raw, "json"), f"{where}: unreadable caption: its .json")
            caption = tree.get(key) if isinstance(tree, dict) else None
        blank = caption is None or (isinstance(caption, str) and not caption.strip())
        if blank and "txt" in raw.members:
            try:
                caption = read_member(raw, "txt").decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: unreadable caption ({error})", fix="save its .txt as UTF-8") from error
        if not isinstance(caption, str):
            raise DataError(f"{where}: no caption in field {key!r} of its .json nor in a .txt")
        if not caption.strip():
            raise DataError(f"{where}: the caption is empty", fix="remove the record")
        return caption
