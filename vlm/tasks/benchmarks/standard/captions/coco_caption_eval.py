"""COCO captions: one sentence about an image, compared with five that people wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.captions.shared import (
    COCO_FOLDERS,
    ONE_SENTENCE,
    captioned,
    coco_items,
    image_of,
    karpathy,
)
from vlm.tasks.benchmarks.standard.captions.shared import caption_scores as caption_scores
from vlm.tasks.benchmarks.standard.captions.shared import meteor_score as meteor_score
from vlm.tasks.benchmarks.standard.captions.shared import result_file as result_file
from vlm.tasks.benchmarks.standard.items import Files, Item

KARPATHY = ("test", "val")
"""Splits of Karpathy and Fei-Fei; the others are COCO's own."""


@register_benchmark("coco_caption_eval")
@register_benchmark("coco_captions")
class CocoCaptions(StandardBenchmark):
    """COCO captions: one sentence about an image, compared with five."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Karpathy's file, its lists for one split, or COCO's own files."""
        if files.split in KARPATHY:
            data = files.json("dataset_coco.json", "coco_karpathy_{split}.json")
        else:
            name = f"captions_{files.split}.json"
            data = files.json(name, f"annotations/{name}")
        if isinstance(data, list):
            yield from _listed(data, files)
        elif "annotations" in data:
            own = files.used[-1].stem.removeprefix("captions_")
            if files.used[-1].stem.startswith("captions_") and own != files.split:
                raise DataError(f"{files.used[-1]}: not of split {files.split}", fix=f"ask for split {own}")
            yield from coco_items(data, files, COCO_FOLDERS)
        else:
            yield from karpathy(data, files, "cocoid", COCO_FOLDERS)


def _listed(data: list[dict[str, Any]], files: Files) -> Iterator[Item]:
    """``[{"image": "val2014/COCO_val2014_000000391895.jpg", "caption": [...]}]``."""
    for record in data:
        name = record["image"].rpartition("_")[2].partition(".")[0].lstrip("0")
        found = record["caption"]
        captions = [found] if isinstance(found, str) else found
        yield captioned(name, image_of(files, record["image"]), captions, karpathy=True)


def lmms_prompt(item: Item) -> str:
    """lmms-eval's tasks on Karpathy's splits ask otherwise than those on COCO's own."""
    return "Describe the image briefly." if item.fields.get("karpathy") else ONE_SENTENCE
