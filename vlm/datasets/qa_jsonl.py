"""Questions with answers, one record per line; mostly for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.common.registry import register_dataset
from vlm.common.types import Image, Sample
from vlm.datasets.base import field, message, read_json, records_of


@register_dataset("qa_jsonl")
class QaJsonl:
    """A ``.jsonl`` file, or a JSON list, of questions about pictures.

    Raw record::

        {"id": "q7", "image": "7.png", "question": "What color is the star?", "answer": "red", "type": "color"}

    Messages::

        user:      [Image(image_path/7.png)] What color is the star?
        assistant: red

    ``image`` may be missing (a text-only question) or a list. All fields stay reachable by :meth:`record`.
    """

    @dataclass
    class Config:
        """Where the files are."""

        ann_path: str
        image_path: str = ""
        text_roles: Sequence[str] = ()

    def __init__(self, config: Config) -> None:
        """Reads the file. Raises DataError when it is missing or of another shape."""
        self.config = config
        self._records = records_of(read_json(config.ann_path, "qa_jsonl"), config.ann_path)

    def __len__(self) -> int:
        return len(self._records)

    def record(self, index: int) -> dict[str, Any]:
        """The raw record, with every field of the file."""
        return self._records[index]

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        key = str(record.get("id", index))
        where = f"{self.config.ann_path}: record {key}"
        question, answer = str(field(record, "question", where)), str(field(record, "answer", where))
        names = record.get("image") or []
        names = names if isinstance(names, list) else [names]
        pictures = [Image(str(Path(self.config.image_path) / str(name))) for name in names]
        return Sample(messages=(message("user", *pictures, question), message("assistant", answer)), id=key)
