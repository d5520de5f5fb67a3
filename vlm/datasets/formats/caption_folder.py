"""A folder of images with one caption file (the layout of cc_sbu_align)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm.common.errors import DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Image, Sample
from vlm.datasets.base import field, message, read_json, records_of
from vlm.datasets.formats.table.read import IMAGE_SUFFIXES


@register_dataset("caption_folder")
class CaptionFolder:
    """``storage/filter_cap.json`` and ``storage/image/ID.jpg`` (or another ending, where there is no ``.jpg``).

    Raw record::

        {"annotations": [{"image_id": "2", "caption": "The red boat stands near the water."}]}

    Messages::

        user:      [Image(storage/image/2.jpg)]
        assistant: The red boat stands near the water.
    """

    @dataclass
    class Config:
        """Where the files are; captions are taken verbatim unless ``text_roles`` names ``assistant``."""

        storage: str
        ann_file: str = "filter_cap.json"
        image_dir: str = "image"
        image_ext: str = ".jpg"
        text_roles: Sequence[str] = ()

    def __init__(self, config: Config) -> None:
        """Reads the caption file. Raises DataError if it is missing or malformed."""
        self.config = config
        self._folder = Path(config.storage).expanduser() / config.image_dir
        file = Path(config.storage).expanduser() / config.ann_file
        self._file = str(file)
        self._records = records_of(read_json(file, "caption_folder"), self._file, "annotations")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        where = f"{self._file}: annotation {index}"
        key, caption = str(field(record, "image_id", where)), field(record, "caption", where)
        if not isinstance(caption, str) or not caption.strip():
            raise DataError(f"{where}: the caption is {caption!r}, not a text", fix="remove the record")
        image = self._image(key)
        return Sample(messages=(message("user", Image(str(image))), message("assistant", caption)), id=key)

    def _image(self, key: str) -> Path:
        """The image of an id, with the first ending under which it exists."""
        wanted = self._folder / f"{key}{self.config.image_ext}"
        names = [key, *(f"{key}{ext}" for e in IMAGE_SUFFIXES for ext in (e, e.upper()))]
        options = [wanted, *(self._folder / name for name in names)]
        return next((file for file in options if os.path.isfile(file)), wanted)
