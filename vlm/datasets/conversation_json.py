"""Dialogues about pictures in one JSON file (the layout of LLaVA-Instruct)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.common.errors import DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Image, Message, Role, Sample
from vlm.datasets.base import field, message, read_json, records_of

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Spellings of ``from`` in circulation."""

MARK = re.compile(r"\n?<image>\n?")


@register_dataset("conversation_json")
class ConversationJson:
    r"""A list of dialogues; every turn is used.

    Raw record::

        {"id": "000000033471", "image": "000000033471.jpg", "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "White and red."},
            {"from": "human", "value": "Is it moving?"},
            {"from": "gpt", "value": "No."}]}

    Messages::

        user:      [Image(image_path/000000033471.jpg)] What are the colors of the bus?
        assistant: White and red.
        user:      Is it moving?
        assistant: No.

    ``image`` may be a list; the k-th ``<image>`` mark is the k-th picture. Without a mark all pictures come
    first. Without an ``image`` field the dialogue is text only, unless ``image_pattern`` makes a name of it.
    """

    @dataclass
    class Config:
        """Where the files are and how pictures are named."""

        ann_path: str
        image_path: str = ""
        image_pattern: str = ""  # e.g. COCO_train2014_{id}.jpg for records without an image field
        image_first: bool = True  # published form: the picture stands before the text of its turn
        drop_newlines: bool = False  # published form: newlines in questions are deleted
        first_pair_only: bool = False
        text_roles: Sequence[str] = ()

    def __init__(self, config: Config) -> None:
        """Reads the file. Raises DataError when it is missing or of another shape."""
        self.config = config
        self._records = records_of(read_json(config.ann_path, "conversation_json"), config.ann_path)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        key = str(record.get("id", index))
        where = f"{self.config.ann_path}: record {key}"
        turns = field(record, "conversations", where)
        if not isinstance(turns, list) or not turns:
            raise DataError(f"{where}: conversations must be a list with at least one turn")
        pictures = [Image(str(Path(self.config.image_path) / name)) for name in self._names(record)]
        texts = [str(field(turn, "value", where)) for turn in turns]
        marks = sum(text.count("<image>") for text in texts)
        if marks == 0 and pictures:
            texts[0] = "<image>" * len(pictures) + texts[0]
        elif marks != len(pictures):
            raise DataError(f"{where}: {marks} <image> marks but {len(pictures)} pictures")
        left = iter(pictures)
        messages = [self._message(t, text, left, where) for t, text in zip(turns, texts, strict=True)]
        return Sample(messages=tuple(messages[:2] if self.config.first_pair_only else messages), id=key)

    def _names(self, record: dict[str, Any]) -> list[str]:
        names = record.get("image")
        if names is None:
            return [self.config.image_pattern.format(**record)] if self.config.image_pattern else []
        return [str(n) for n in names] if isinstance(names, list) else [str(names)]

    def _message(self, turn: dict[str, Any], text: str, left: Any, where: str) -> Message:
        role = ROLES.get(str(turn.get("from")))
        if role is None:
            raise DataError(f"{where}: unknown speaker {turn.get('from')!r} (known: {', '.join(ROLES)})")
        if role == "user" and self.config.drop_newlines:
            text = text.replace("\n", "")
        pieces = MARK.split(text)
        pictures = [next(left) for _ in pieces[1:]]
        if self.config.image_first or not pictures:
            rest = "".join(pieces)
            rest = rest.strip() if role == "user" else rest
            return message(role, *pictures, *([rest] if rest else []))
        parts: list[str | Image] = [pieces[0]]
        for picture, following in zip(pictures, pieces[1:], strict=True):
            parts += [picture, following]
        return message(role, *(p for p in parts if p != ""))
