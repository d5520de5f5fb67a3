"""TextCaps: captions that mention the text in an image."""

from __future__ import annotations

from collections.abc import Iterator

from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.standard.base import StandardBenchmark
from vlm.tasks.benchmarks.standard.captions.shared import caption_scores as caption_scores
from vlm.tasks.benchmarks.standard.captions.shared import captioned, image_of
from vlm.tasks.benchmarks.standard.captions.shared import meteor_score as meteor_score
from vlm.tasks.benchmarks.standard.captions.shared import result_file as result_file
from vlm.tasks.benchmarks.standard.items import Files, Item

FOLDERS = ("train_images", "test_images")


@register_benchmark("textcaps")
class TextCaps(StandardBenchmark):
    """TextCaps: captions that mention the text in an image."""

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """One item per image; the file has a record per caption, and none in the test split."""
        captions: dict[str, list[str]] = {}
        for record in files.json("TextCaps_0.1_{split}.json", "TextCaps*_{split}.json")["data"]:
            found = captions.setdefault(str(record["image_id"]), [])
            if "caption_str" in record:
                found.append(record["caption_str"])
        for name, texts in captions.items():
            yield captioned(name, image_of(files, f"{name}.jpg", *FOLDERS), texts)
