"""A dataset format: ``[{"file": "a.png", "tag": "red"}, ...]`` -> an image and its tag."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm import Image, register_dataset
from vlm.common.types import Sample
from vlm.datasets.base import message


@register_dataset("name_tags")
class NameTags:
    """Map style: a length and access by index. ``record`` is needed for evaluation only."""

    @dataclass
    class Config:
        """Options under ``build_info``."""

        index: str = ""

    def __init__(self, config: Config) -> None:
        self.folder = Path(config.index).parent
        self.rows: list[dict[str, Any]] = json.loads(Path(config.index).read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        user = message("user", Image(self.folder / row["file"]), "Name the color.")
        return Sample((user, message("assistant", row["tag"])), id=row["file"], source="name_tags")

    def record(self, index: int) -> dict[str, Any]:
        """All fields of a record."""
        return self.rows[index]
