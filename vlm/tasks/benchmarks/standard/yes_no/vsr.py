"""Visual Spatial Reasoning: is a statement about where things are true of the image?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from vlm.common.errors import DataError
from vlm.common.registry import register_benchmark
from vlm.datasets.formats.table.arrow import from_hub
from vlm.tasks.benchmarks.standard.base import StandardBenchmark, StandardOptions
from vlm.tasks.benchmarks.standard.items import Files, Item, Items
from vlm.tasks.benchmarks.standard.rules import start_of

HUB = "cambridgeltl/"
"""Owner of the dataset on the Hugging Face hub that a published configuration names in place of a file."""
WORDS = {"true": "true", "yes": "true", "false": "false", "no": "false"}


@register_benchmark("vsr")
class Vsr(StandardBenchmark):
    """VSR: sixty-six spatial relations."""

    @classmethod
    def open(cls, annotations: str, media: str, options: StandardOptions) -> Items:
        """See :meth:`StandardBenchmark.open`; ``annotations`` may be the name of the dataset on the hub."""
        if not annotations.startswith(HUB) or Path(annotations).exists():
            return super().open(annotations, media, options)
        split = options.split or cls.spec().splits[0]
        try:
            found = from_hub(f"hf://{annotations}?split={'validation' if split == 'dev' else split}")
        except DataError as error:
            raise DataError(str(error), fix=f"download {split}.jsonl of {annotations} and give its path") from None
        if not media:
            raise DataError(f"vsr: {annotations} has no images", fix="name the folder of COCO's images (img_path)")
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"{split}.jsonl"
            file.write_text("".join(json.dumps(found[k]) + "\n" for k in range(len(found))), encoding="utf-8")
            return super().open(str(file), media, options)

    @staticmethod
    def read(files: Files) -> Iterator[Item]:
        """Lines ``{"image", "caption", "label", "relation"}``; an item's id is its line, from 0."""
        for number, line in enumerate(files.json_lines("{split}.jsonl")):
            label = str(line["label"])
            if label not in ("0", "1"):
                raise DataError(f"{files.annotations}: line {number + 1}: label {label}", fix="expected is 0 or 1")
            truth = "true" if label == "1" else "false"
            fields = {"type": line.get("relation")}
            yield Item(str(number), line["caption"], (files.image(line["image"]),), truth, fields, ("true", "false"))


def lower(output: str, item: Item) -> str | None:
    """The whole answer in lower case, if it is true or false."""
    return output.lower() if output.lower() in ("true", "false") else None


def first_word(output: str, item: Item) -> str | None:
    """True or yes, false or no, as the first word."""
    return WORDS.get(start_of(output))
