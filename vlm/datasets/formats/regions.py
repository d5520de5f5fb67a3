"""Described regions of Visual Genome, as referring expressions."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.common.bounds import NonNegative, Positive
from vlm.common.errors import DataError
from vlm.common.registry import register_dataset
from vlm.common.types import Sample
from vlm.datasets.base import by_id, field, read_json, records_of
from vlm.datasets.formats.boxes import image_size
from vlm.datasets.formats.referring import BoxDialogues, Direction, choice


@register_dataset("regions")
class Regions(BoxDialogues):
    """``data_dir/region_descriptions.json``, ``data_dir/image_data.json`` and the folders ``VG_100K*/``.

    Raw records (the regions of an image; the image)::

        {"id": 61512, "regions": [{"region_id": 1, "image_id": 61512, "phrase": "a clock on a pole",
                                   "x": 421, "y": 91, "width": 79, "height": 130}]}
        {"image_id": 61512, "url": "https://.../VG_100K_2/61512.jpg", "width": 800, "height": 600}

    Messages::

        user:      [Image(data_dir/VG_100K_2/61512.jpg)] [refer] where is a clock on a pole ?
        assistant: {<52><15><62><36>}

    Only regions of less than ``max_area`` square pixels are used (published: 16384). One line of the pool is drawn at
    each access; ``direction: identify`` is the inverse task.
    """

    @dataclass
    class Config:
        """Where the files are, and which regions."""

        data_dir: str
        max_area: Positive = 16384.0
        direction: Direction = "refer"
        pool: str | list[str] = ""  # texts with one {}; empty: the shipped pool of the direction
        slack: NonNegative = 4.0  # pixels by which a box may leave the image; it is clipped

    def __init__(self, config: Config) -> None:
        """Reads both files. Raises DataError: missing, malformed, or no region is small enough."""
        super().__init__(config)
        self._file = str(Path(config.data_dir) / "region_descriptions.json")
        images = Path(config.data_dir) / "image_data.json"
        self._images = by_id(records_of(read_json(images, "regions"), str(images)), "image_id", "id")
        self._regions = self._small(records_of(read_json(self._file, "regions"), self._file))
        if not self._regions:
            raise DataError(
                f"regions: {self._file} has no region of less than {config.max_area:g} square pixels",
                fix="check the file, or raise build_info.max_area",
            )

    def _small(self, records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        """(image, region id, phrase, x, y, width, height) of the small regions; tuples, as there are millions."""
        result = []
        if records and not any("regions" in record for record in records):
            field(records[0], "regions", f"{self._file}: image {records[0].get('id')}")
        for record in records:
            regions = record.get("regions")
            for region in regions if isinstance(regions, list) else [None]:
                r: dict[str, Any] = region if isinstance(region, dict) else {}  # reported as one without image
                width, height = r.get("width"), r.get("height")
                sizes = [v for v in (width, height) if isinstance(v, int | float)]
                if len(sizes) == 2 and sizes[0] * sizes[1] >= self.config.max_area:
                    continue
                image = r.get("image_id", record.get("id"))
                result.append((image, r.get("region_id"), r.get("phrase"), r.get("x"), r.get("y"), width, height))
        return result

    def __len__(self) -> int:
        return len(self._regions)

    def draw(self, index: int, rng: random.Random | None) -> Sample:
        """The region with one of the questions. Raises DataError."""
        image_id, region_id, phrase, *box = self._regions[index]
        where = f"{self._file}: image {image_id}, region {region_id}"
        record = self._images.get(image_id)
        if record is None:
            raise DataError(
                f"{where}: image_data.json has no entry {image_id!r}", fix="use the two files of one release"
            )
        size = image_size(record, f"{where}: image_data.json")
        *_, folder, name = ["", "", *str(field(record, "url", where)).split("/")]
        image = Path(self.config.data_dir) / folder / name
        messages = self._messages(image, phrase, box, size, choice(self._pool, rng), where)
        return Sample(messages=messages, id=str(region_id if region_id is not None else index))
